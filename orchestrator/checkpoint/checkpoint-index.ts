// Turns model.safetensors.index.json into which file should hold which tensor. The file names in it are a stranger's: each
// must be a plain name, so that it can mean nothing but a file of the checkpoint's own directory.

import { LayercastError } from "../contract/errors.js";
import { parseStrictJson, quoted, type StrictJson, StrictJsonError } from "./strict-json.js";

/** Checkpoint tensor name -> file name within the directory. */
export type WeightMap = Map<string, string>;

export function parseCheckpointIndex(bytes: Uint8Array, file: string): WeightMap {
  const json = parseIndexJson(bytes, file);
  const entries = json instanceof Map ? json.get("weight_map") : undefined;
  if (!(entries instanceof Map)) throw invalid(file, "has no object weight_map");
  const weightMap: WeightMap = new Map();
  for (const [tensor, name] of entries) {
    if (typeof name !== "string" || !isPlainName(name))
      throw invalid(file, `puts ${quoted(tensor)} into a file that is not a plain *.safetensors name of its directory`);
    weightMap.set(tensor, name);
  }
  if (weightMap.size === 0) throw invalid(file, "has an empty weight_map");
  return weightMap;
}

function parseIndexJson(bytes: Uint8Array, file: string): StrictJson {
  try {
    return parseStrictJson(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    if (error instanceof StrictJsonError) throw invalid(file, `is not right: ${error.message}`);
    throw invalid(file, "is not UTF-8");
  }
}

function isPlainName(name: string): boolean {
  return name.length <= 255 && name.endsWith(".safetensors") && !/[/\\\p{Cc}]/u.test(name);
}

function invalid(file: string, what: string): LayercastError {
  return new LayercastError("checkpoint_invalid", `${file} ${what}. Write the checkpoint again.`, { file });
}
