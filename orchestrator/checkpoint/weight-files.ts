// Decides which files of a directory are the checkpoint: those that its index names, or model.safetensors, or the shards
// model-00001-of-00003 and so on. What lies beside them (another vendor's format, an adapter, an optimizer's state) is not read.

import path from "node:path";
import { countOf } from "../contract/count-of.js";
import { LayercastError } from "../contract/errors.js";
import { joinNames } from "../contract/join-names.js";
import type { SourceWarning } from "../contract/plan.js";
import type { WeightMap } from "./checkpoint-index.js";
import { ADAPTER_NAMES, isAdapterFile } from "./not-applied.js";
import { quoted } from "./strict-json.js";

export interface WeightFiles {
  /** Names within the directory, sorted. */
  names: string[];
  /** The index that counts; null: none. Files that it names and that are not in `names` are not there. */
  weightMap: WeightMap | null;
  warnings: SourceWarning[];
}

/** `weightMap`: what the directory's index says; null: it has none. */
export function chooseWeightFiles(
  directory: string,
  entries: ReadonlySet<string>,
  weightMap: WeightMap | null,
): WeightFiles {
  const files = [...entries].filter((name) => name.endsWith(ENDING)).sort();
  if (weightMap === null) return withUnread(filesWithoutIndex(directory, files), files);
  const named = [...new Set(weightMap.values())].sort();
  const there = named.filter((name) => entries.has(name));
  const isStale = there.length < named.length && entries.has(WHOLE) && !named.includes(WHOLE);
  if (isStale)
    return withUnread({ names: [WHOLE], weightMap: null, warnings: [staleIndex(directory, named, there)] }, files);
  if (there.length === 0) throw nothingOfIndex(directory, named, files);
  return withUnread({ names: there, weightMap, warnings: [] }, files);
}

function filesWithoutIndex(directory: string, files: readonly string[]): WeightFiles {
  const weights = files.filter((name) => !OTHER_PURPOSE.test(name));
  if (weights.length === 0) throw noWeights(directory, files);
  const names = weights.includes(WHOLE) ? [WHOLE] : (shardsAmong(directory, weights) ?? weights);
  return { names, weightMap: null, warnings: [] };
}

interface Shard {
  name: string;
  /** What the names of all shards of one save have in common: `model` for the usual ones. */
  stem: string;
  number: number;
  total: number;
}

/** The shards of one save, whole; null: no file is named as a shard. */
function shardsAmong(directory: string, weights: readonly string[]): string[] | null {
  const all = weights.map(shardOf).filter((shard) => shard !== null);
  const stems = [...new Set(all.map(({ stem }) => stem))];
  if (stems.length === 0) return null;
  if (stems.length > 1 && !stems.includes(USUAL_STEM)) throw manySaves(directory, all);
  const shards = all.filter(({ stem }) => stem === (stems.includes(USUAL_STEM) ? USUAL_STEM : stems[0]));
  const total = shards[0]?.total ?? 0;
  if (shards.some((shard) => shard.total !== total)) throw manySaves(directory, shards);
  // Some writers count from 0.
  const first = shards.some(({ number }) => number === 0) ? 0 : 1;
  const missing: string[] = [];
  for (let number = first; number < first + total && missing.length < MISSING_NAMED; number++)
    if (!shards.some((shard) => shard.number === number)) missing.push(shardName(shards[0], number));
  if (missing.length > 0) throw shardsMissing(directory, shards, missing);
  return shards.map(({ name }) => name);
}

function shardOf(name: string): Shard | null {
  const [, before = "", number, total, after = ""] = SHARD.exec(name) ?? [];
  if (number === undefined || total === undefined) return null;
  return { name, stem: before + after, number: Number(number), total: Number(total) };
}

/** As the other shards of its save are named. */
function shardName(like: Shard | undefined, number: number): string {
  return (like?.name ?? "").replace(
    /-(\d+)-of-/,
    (_, digits: string) => `-${String(number).padStart(digits.length, "0")}-of-`,
  );
}

/** Files that could be weights and are not read are said. */
function withUnread(chosen: WeightFiles, files: readonly string[]): WeightFiles {
  const unread = files.filter((name) => !chosen.names.includes(name) && !OTHER_PURPOSE.test(name));
  if (unread.length === 0) return chosen;
  const warning: SourceWarning = {
    code: "files_not_read",
    message:
      `Beside ${joinNames(chosen.names, FILES_NAMED)} the checkpoint's directory has ${joinNames(unread.map(quoted), FILES_NAMED)}, ` +
      `which ${chosen.weightMap === null ? "belongs to none of its weights" : `${INDEX} does not name`} and is not read.`,
    details: { files: unread.slice(0, FILES_IN_DETAILS) },
  };
  return { ...chosen, warnings: [...chosen.warnings, warning] };
}

function staleIndex(directory: string, named: readonly string[], there: readonly string[]): SourceWarning {
  const gone = named.filter((name) => !there.includes(name));
  return {
    code: "index_stale",
    message:
      `${INDEX} in ${directory} is stale: it names ${joinNames(gone.map(quoted), FILES_NAMED)}, not there. ${WHOLE} was loaded ` +
      "instead. Remove the index.",
    details: { index: path.join(directory, INDEX), missing: gone.slice(0, FILES_IN_DETAILS), loaded: WHOLE },
  };
}

function nothingOfIndex(directory: string, named: readonly string[], files: readonly string[]): LayercastError {
  const found = files.length === 0 ? "no *.safetensors file" : joinNames(files.map(quoted), FILES_NAMED);
  return new LayercastError(
    "source_not_found",
    `${INDEX} in ${directory} names ${joinNames(named.map(quoted), FILES_NAMED)}, and none of it is there; the directory has ${found}. The ` +
      "index is stale, or its files were not copied. Copy them, or remove the index.",
    { file: path.join(directory, named[0] ?? ""), missing: named.slice(0, FILES_IN_DETAILS) },
  );
}

function noWeights(directory: string, files: readonly string[]): LayercastError {
  if (files.length === 0)
    return new LayercastError(
      "checkpoint_invalid",
      `${directory} has no *.safetensors file. Give the checkpoint's directory.`,
      { file: directory },
    );
  const isAdapter = files.some(isAdapterFile);
  return new LayercastError(
    "checkpoint_invalid",
    `${directory} has no weights in Hugging Face's form: ${joinNames(files.map(quoted), FILES_NAMED)} is ` +
      (isAdapter
        ? "an adapter, which is not loaded. Merge it into its base model and submit that."
        : `not read by that name. If it is the model, name it ${WHOLE}.`),
    { file: directory, files: files.slice(0, FILES_IN_DETAILS) },
  );
}

function manySaves(directory: string, shards: readonly Shard[]): LayercastError {
  const saves = new Map(shards.map((shard) => [`${shard.stem} of ${shard.total}`, shard.name]));
  return new LayercastError(
    "checkpoint_invalid",
    `${directory} has shards of ${countOf(saves.size, "save")} and no ${INDEX} that says which belong together: ` +
      `${joinNames([...saves.values()].map(quoted), FILES_NAMED)}. Remove those that do not belong to the checkpoint.`,
    { file: directory, files: [...saves.values()].slice(0, FILES_IN_DETAILS) },
  );
}

function shardsMissing(directory: string, shards: readonly Shard[], missing: readonly string[]): LayercastError {
  return new LayercastError(
    "source_not_found",
    `${directory} has ${shards.length} of ${countOf(shards[0]?.total ?? 0, "shard")} and no ${INDEX}; not there: ${joinNames(missing.map(quoted), FILES_NAMED)}. ` +
      "Copy the checkpoint again.",
    { file: path.join(directory, missing[0] ?? ""), missing },
  );
}

export const INDEX = "model.safetensors.index.json";
const WHOLE = "model.safetensors";
const ENDING = ".safetensors";
const USUAL_STEM = "model";
/** Of `model-00001-of-00003.safetensors`, `model-00001-of-00003.fp16.safetensors` and the like. */
const SHARD = /^(.+)-(\d{1,9})-of-(\d{1,9})(\..+)?\.safetensors$/;
/**
 * What lies beside a model's weights is named like this, before `.`, `_` or `-`: the vendor's own format, adapters, averages, and a
 * trainer's state.
 */
export const OTHER_PURPOSES = [
  "consolidated",
  ...ADAPTER_NAMES,
  ...["optimizer", "optimizers", "optim", "ema", "scheduler", "scaler"],
  ...["rng_state", "random_states", "trainer_state", "training_state"],
];
const OTHER_PURPOSE = new RegExp(`^(?:${OTHER_PURPOSES.join("|")})(?:[._-].*)?\\.safetensors$`, "i");
const MISSING_NAMED = 100;
const FILES_NAMED = 3;
const FILES_IN_DETAILS = 100;
