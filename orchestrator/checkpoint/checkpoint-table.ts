// Turns a checkpoint directory into its table (name -> dtype, shape, file, offset of every tensor) and its model config.
// Reads headers, the index and config.json, never a tensor. The files' headers are the truth; the index says which files
// belong to the checkpoint, and where it names what is not there, the plan says whether that is needed.

import { constants, open, readdir } from "node:fs/promises";
import path from "node:path";
import { countOf } from "../contract/count-of.js";
import { LayercastError } from "../contract/errors.js";
import type { AbsentTensor, CheckpointTable, CheckpointTensor } from "../contract/plan.js";
import { FILES_AT_ONCE, inParallel, readCheckpointFile } from "./checkpoint-file.js";
import { parseCheckpointIndex, type WeightMap } from "./checkpoint-index.js";
import { type ModelConfig, parseModelConfig } from "./model-config.js";
import { filesNotApplied } from "./not-applied.js";
import {
  type AllowedRoots,
  pathOfUri,
  requireOpenedUnder,
  resolveAllowed,
  resolveRoots,
  sourceError,
} from "./source-path.js";
import { quoted } from "./strict-json.js";
import { unwrapNames } from "./tensor-names.js";
import { chooseWeightFiles, INDEX } from "./weight-files.js";

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
  const index = await readIndex(directory, entries, roots);
  const { names, weightMap, warnings } = chooseWeightFiles(directory, entries, index);
  const files = await inParallel(names, FILES_AT_ONCE, async (name) =>
    readCheckpointFile(await resolveAllowed(path.join(directory, name), roots), roots),
  );
  const stored = joinTensors(names, files);
  const absent = absentTensors(weightMap ?? new Map(), names, stored, directory);
  const table = {
    directory,
    files: files.map(({ file }) => file),
    tensors: stored,
    absent,
    warnings: [...warnings, ...filesNotApplied(entries, names, stored)],
  };
  return { table: unwrapped(table), config };
}

/** The table under the names that the model itself has for its tensors. */
function unwrapped(table: CheckpointTable): CheckpointTable {
  const { plainOf, warning } = unwrapNames(table.tensors.keys(), table.directory);
  if (warning === null) return table;
  const renamed = [...table.tensors.values()].map((tensor) => ({ ...tensor, name: plainOf(tensor.name) }));
  renamed.sort((a, b) => (a.name < b.name ? -1 : 1));
  return {
    ...table,
    tensors: new Map(renamed.map((tensor) => [tensor.name, tensor])),
    absent: new Map([...table.absent].map(([name, absent]) => [plainOf(name), absent])),
    warnings: [...table.warnings, warning],
  };
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

/** What the index names and no file holds. A tensor that it does not name is kept: the plan says whether it is expected. */
function absentTensors(
  weightMap: WeightMap,
  names: readonly string[],
  tensors: ReadonlyMap<string, CheckpointTensor>,
  directory: string,
): Map<string, AbsentTensor> {
  const absent = new Map<string, AbsentTensor>();
  for (const [name, file] of weightMap) {
    const found = tensors.get(name);
    if (found === undefined) {
      absent.set(name, { file, isFileThere: names.includes(file) });
    } else if (names[found.file] !== file)
      throw invalid(
        directory,
        `has an ${INDEX} that puts ${quoted(name)} into ${file}, but ${names[found.file]} holds it`,
      );
  }
  return absent;
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
      if (size > maxBytes) throw invalid(file, `has ${countOf(size, "byte")}, more than the ${maxBytes} allowed`);
      return await handle.readFile();
    } finally {
      await handle.close();
    }
  } catch (error) {
    throw error instanceof LayercastError ? error : sourceError(file, error);
  }
}

function invalid(file: string, what: string): LayercastError {
  return new LayercastError("checkpoint_invalid", `${file} ${what}.`, { file });
}

const CONFIG = "config.json";
const MAX_CONFIG_BYTES = 10_000_000;
const MAX_INDEX_BYTES = 100_000_000;
