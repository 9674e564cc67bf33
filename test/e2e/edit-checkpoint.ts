// A checkpoint of a test's own: a copy of a fixture with something changed.

import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { parseSafetensorsHeader } from "../../orchestrator/checkpoint/safetensors-header.js";
import { isSourceDType } from "../../orchestrator/contract/dtype.js";
import { type BuiltTensor, buildSafetensors } from "../checkpoint/build-safetensors.js";
import { CHECKPOINTS, type Cluster } from "./cluster.js";

export interface EditedCheckpoint {
  uri: string;
  directory: string;
  /** Path of the file that holds the tensor. */
  fileOf(tensor: string): string;
}

export type Tensors = Map<string, BuiltTensor & { bytes: Uint8Array }>;

let copies = 0;

/** Copies tiny-qwen3 v2 as one file without an index, after `edit` has changed its tensors and its config. */
export function editedCheckpoint(
  cluster: Cluster,
  edit: (tensors: Tensors, config: Record<string, unknown>) => void,
): EditedCheckpoint {
  const from = join(CHECKPOINTS, "tiny-qwen3", "v2");
  const directory = newDirectory(cluster);
  const tensors: Tensors = new Map();
  for (const name of readdirSync(from).filter((file) => file.endsWith(".safetensors"))) {
    const file = readFileSync(join(from, name));
    const headerBytes = file.subarray(0, 8 + Number(file.readBigUInt64LE()));
    for (const { name: tensor, dtype, shape, offset } of parseSafetensorsHeader(headerBytes, file.byteLength).tensors) {
      if (!isSourceDType(dtype)) throw new Error(`${tensor} is ${dtype}`);
      const bytes = Uint8Array.from(file.subarray(offset, offset + 2 * shape.reduce((a, b) => a * b, 1)));
      tensors.set(tensor, { dtype, shape, bytes });
    }
  }
  const config = JSON.parse(readFileSync(join(from, "config.json"), "utf8")) as Record<string, unknown>;
  edit(tensors, config);
  writeFileSync(join(directory, "config.json"), JSON.stringify(config));
  const path = join(directory, "model.safetensors");
  writeFileSync(path, buildSafetensors(Object.fromEntries(tensors)));
  return { uri: pathToFileURL(directory).href, directory, fileOf: () => path };
}

/** Copies a fixture as it is. */
export function copiedCheckpoint(cluster: Cluster, version: string): EditedCheckpoint {
  const directory = newDirectory(cluster);
  rmSync(directory, { recursive: true });
  cpSync(join(CHECKPOINTS, "tiny-qwen3", version), directory, { recursive: true });
  const { weight_map } = JSON.parse(readFileSync(join(directory, "model.safetensors.index.json"), "utf8")) as {
    weight_map: Record<string, string>;
  };
  return {
    uri: pathToFileURL(directory).href,
    directory,
    fileOf: (tensor) => join(directory, weight_map[tensor] ?? ""),
  };
}

function newDirectory(cluster: Cluster): string {
  copies += 1;
  const directory = join(cluster.sources, `copy-${copies}`);
  mkdirSync(directory);
  return directory;
}
