// Turns a checkpoint directory into its table (name -> dtype, shape, file, offset of every tensor) and its model config.
// Reads headers, the index and config.json, never a tensor. The files' headers are the truth; the index says which files
// belong to the checkpoint and must agree with them.

import { constants, open, readdir } from "node:fs/promises";
import path from "node:path";
import { LayercastError } from "../contract/errors.js";
import type { CheckpointTable, CheckpointTensor } from "../contract/plan.js";
import { FILES_AT_ONCE, inParallel, readCheckpointFile } from "./checkpoint-file.js";
import { parseCheckpointIndex, type WeightMap } from "./checkpoint-index.js";
import { type ModelConfig, parseModelConfig } from "./model-config.js";
import {
  type AllowedRoots,
  pathOfUri,
  requireOpenedUnder,
  resolveAllowed,
  resolveRoots,
  sourceError,
} from "./source-path.js";
import { quoted } from "./strict-json.js";

export interface Checkpoint {
  table: CheckpointTable;
  config: ModelConfig;
}

/** `uri`: file:// URI or absolute path of a directory under one of `allowedRoots`. */
export async function readCheckpointTable(
  uri: string,
  { allowedRoots }: { allowedRoots: readonly string[] },
): Promise<Checkpoint> {
  const roots = await resolveRoots(allowedRoots);
  const directory = await resolveAllowed(pathOfUri(uri), roots);
  const entries = new Set(await listDirectory(directory));
  const config = await readConfig(directory, entries, roots);
  const weightMap = await readIndex(directory, entries, roots);
  const names = namesOfFiles(directory, entries, weightMap);
  const files = await inParallel(names, FILES_AT_ONCE, async (name) =>
    readCheckpointFile(await resolveAllowed(path.join(directory, name), roots), roots),
  );
  const tensors = joinTensors(names, files);
  if (weightMap !== null) checkIndexAgrees(weightMap, names, tensors, directory);
  return { table: { directory, files: files.map(({ file }) => file), tensors }, config };
}

async function listDirectory(directory: string): Promise<string[]> {
  try {
    return await readdir(directory);
  } catch (error) {
    if ((error as { code?: unknown }).code === "ENOTDIR")
      throw invalid(directory, "is not a directory. Give the checkpoint's directory, not one of its files");
    throw sourceError(directory, error);
  }
}

async function readConfig(directory: string, entries: ReadonlySet<string>, roots: AllowedRoots): Promise<ModelConfig> {
  if (!entries.has(CONFIG)) throw invalid(directory, `has no ${CONFIG}. Give the checkpoint's directory`);
  const file = path.join(directory, CONFIG);
  const bytes = await readSmallFile(await resolveAllowed(file, roots), roots, MAX_CONFIG_BYTES);
  return parseModelConfig(new TextDecoder().decode(bytes), file);
}

async function readIndex(
  directory: string,
  entries: ReadonlySet<string>,
  roots: AllowedRoots,
): Promise<WeightMap | null> {
  if (!entries.has(INDEX)) return null;
  const file = path.join(directory, INDEX);
  return parseCheckpointIndex(await readSmallFile(await resolveAllowed(file, roots), roots, MAX_INDEX_BYTES), file);
}

function namesOfFiles(directory: string, entries: ReadonlySet<string>, weightMap: WeightMap | null): string[] {
  const names = weightMap === null ? [...entries].filter(isSafetensors) : [...new Set(weightMap.values())];
  if (names.length === 0) throw invalid(directory, "has no *.safetensors file. Give the checkpoint's directory");
  return names.sort();
}

function joinTensors(
  names: readonly string[],
  files: readonly Awaited<ReturnType<typeof readCheckpointFile>>[],
): Map<string, CheckpointTensor> {
  const tensors: CheckpointTensor[] = files.flatMap(({ header }, file) =>
    header.tensors.map(({ name, dtype, shape, offset }) => ({ name, dtype, shape, file, offset })),
  );
  tensors.sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : a.file - b.file));
  tensors.forEach((tensor, index) => {
    const before = tensors[index - 1];
    if (before?.name === tensor.name)
      throw new LayercastError(
        "checkpoint_invalid",
        `The tensor ${quoted(tensor.name)} is in two files, ${names[before.file]} and ${names[tensor.file]}. ` +
          "Remove the file that does not belong to the checkpoint.",
        { tensor: tensor.name, files: [names[before.file], names[tensor.file]] },
      );
  });
  return new Map(tensors.map((tensor) => [tensor.name, tensor]));
}

// A tensor that the index does not name is kept: loaders read whole files, and the plan says whether it is expected.
function checkIndexAgrees(
  weightMap: WeightMap,
  names: readonly string[],
  tensors: ReadonlyMap<string, CheckpointTensor>,
  directory: string,
): void {
  for (const [name, file] of weightMap) {
    const found = tensors.get(name);
    if (found === undefined)
      throw new LayercastError(
        "tensor_missing",
        `${INDEX} in ${directory} puts ${quoted(name)} into ${file}, which does not hold it. Write the checkpoint again.`,
        { tensors: [name], file: path.join(directory, file) },
      );
    if (names[found.file] !== file)
      throw invalid(
        directory,
        `has an ${INDEX} that puts ${quoted(name)} into ${file}, but ${names[found.file]} holds it`,
      );
  }
}

async function readSmallFile(file: string, roots: AllowedRoots, maxBytes: number): Promise<Uint8Array> {
  try {
    // O_NONBLOCK: opening a FIFO must not wait for its writer.
    const handle = await open(file, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      await requireOpenedUnder(handle, file, roots);
      const stat = await handle.stat();
      if (!stat.isFile()) throw invalid(file, "is not a regular file");
      const { size } = stat;
      if (size > maxBytes) throw invalid(file, `has ${size} bytes, more than the ${maxBytes} allowed`);
      return await handle.readFile();
    } finally {
      await handle.close();
    }
  } catch (error) {
    throw error instanceof LayercastError ? error : sourceError(file, error);
  }
}

function isSafetensors(name: string): boolean {
  return name.endsWith(".safetensors");
}

function invalid(file: string, what: string): LayercastError {
  return new LayercastError("checkpoint_invalid", `${file} ${what}.`, { file });
}

const CONFIG = "config.json";
const INDEX = "model.safetensors.index.json";
const MAX_CONFIG_BYTES = 10_000_000;
const MAX_INDEX_BYTES = 100_000_000;
