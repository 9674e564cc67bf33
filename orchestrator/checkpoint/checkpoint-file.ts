// Turns a path into what tells this state of a safetensors file from any other, and its header; and says later whether
// the file is still in that state. Reads the header only. A file that changes while it is read is `source_changed`.

import { createHash } from "node:crypto";
import { constants, type FileHandle, open, stat } from "node:fs/promises";
import { hostname } from "node:os";
import { countOf } from "../contract/count-of.js";
import { LayercastError } from "../contract/errors.js";
import type { CheckpointFile } from "../contract/plan.js";
import {
  HEADER_PREFIX_BYTES,
  parseSafetensorsHeader,
  readHeaderLength,
  type SafetensorsHeader,
} from "./safetensors-header.js";
import { type AllowedRoots, requireOpenedUnder, sourceError } from "./source-path.js";

/** `path` must be real: a symbolic link as its last part is refused. `roots`: what was opened must lie there. */
export async function readCheckpointFile(
  path: string,
  roots: AllowedRoots | null = null,
): Promise<{ file: CheckpointFile; header: SafetensorsHeader }> {
  const { file, headerBytes } = await readHeaderBytes(path, roots);
  return { file, header: parseSafetensorsHeader(headerBytes, file.sizeBytes, path) };
}

export async function describeFile(path: string): Promise<CheckpointFile> {
  return (await readHeaderBytes(path)).file;
}

/** How many bytes the header of a file has, before it is read. */
export async function headerBytesOf(path: string, roots: AllowedRoots | null = null): Promise<number> {
  const handle = await openRegular(path, roots);
  try {
    const { sizeBytes } = await stateOf(handle, path);
    return readHeaderLength(await readExactly(handle, path, Math.min(HEADER_PREFIX_BYTES, sizeBytes)), sizeBytes, path);
  } finally {
    await handle.close();
  }
}

/** Returns when the file is as it was when `expected` was made; `source_changed` or `source_not_found` otherwise. */
export async function verifyFile(expected: CheckpointFile): Promise<void> {
  const found = await describeFile(expected.path);
  for (const [field, meaning] of COMPARED) {
    if (found[field] !== expected[field]) throw sourceChanged(expected.path, meaning, expected[field], found[field]);
  }
}

export async function verifyFiles(expected: readonly CheckpointFile[]): Promise<void> {
  await inParallel(expected, FILES_AT_ONCE, verifyFile);
}

/** After the last read: the same but for the header, which nobody can change without leaving a trace of it here. */
export async function requireUntouched(expected: readonly CheckpointFile[]): Promise<void> {
  await inParallel(expected, FILES_AT_ONCE, async (file) => {
    const now = await statusOf(file.path);
    for (const [field, meaning] of COMPARED) {
      if (field !== "headerDigest" && now[field] !== file[field])
        throw sourceChanged(file.path, meaning, file[field], now[field]);
    }
  });
}

/** Without the header. */
export async function statusOf(path: string): Promise<Omit<CheckpointFile, "path" | "headerDigest">> {
  const found = await stat(path, { bigint: true }).catch((error: unknown) => {
    throw sourceError(path, error);
  });
  return { sizeBytes: Number(found.size), mtimeNs: String(found.mtimeNs), inode: String(found.ino) };
}

export const FILES_AT_ONCE = 8;

/** Results in the order of `items`; at most `width` at a time, for a checkpoint can have thousands of files. */
export async function inParallel<Item, Result>(
  items: readonly Item[],
  width: number,
  work: (item: Item) => Promise<Result>,
): Promise<Result[]> {
  const results: Result[] = [];
  const queue = items.entries();
  const drain = async () => {
    for (const [index, item] of queue) results[index] = await work(item);
  };
  await Promise.all(Array.from({ length: Math.min(width, items.length) }, drain));
  return results;
}

async function readHeaderBytes(
  path: string,
  roots: AllowedRoots | null = null,
): Promise<{ file: CheckpointFile; headerBytes: Uint8Array }> {
  const handle = await openRegular(path, roots);
  try {
    const before = await stateOf(handle, path);
    const prefix = await readExactly(handle, path, Math.min(HEADER_PREFIX_BYTES, before.sizeBytes));
    const length = readHeaderLength(prefix, before.sizeBytes, path);
    const headerBytes = await readExactly(handle, path, HEADER_PREFIX_BYTES + length);
    const after = await stateOf(handle, path);
    for (const [field, meaning] of COMPARED) {
      if (field !== "headerDigest" && before[field] !== after[field])
        throw sourceChanged(path, meaning, before[field], after[field]);
    }
    const headerDigest = createHash("sha256").update(headerBytes).digest("hex");
    return { file: { path, ...before, headerDigest }, headerBytes };
  } finally {
    await handle.close();
  }
}

async function openRegular(path: string, roots: AllowedRoots | null): Promise<FileHandle> {
  // O_NONBLOCK: opening a FIFO must not wait for its writer.
  const flags = constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW;
  const handle = await open(path, flags).catch((error: unknown) => {
    throw sourceError(path, error);
  });
  if (roots !== null) await requireOpenedUnder(handle, path, roots);
  return handle;
}

async function stateOf(handle: FileHandle, path: string): Promise<Omit<CheckpointFile, "path" | "headerDigest">> {
  const found = await handle.stat({ bigint: true });
  if (!found.isFile()) throw new LayercastError("checkpoint_invalid", `${path} is not a regular file.`, { file: path });
  if (found.size > BigInt(Number.MAX_SAFE_INTEGER))
    throw new LayercastError("checkpoint_invalid", `${path} has ${countOf(found.size, "byte")}, 2^53 or more.`, {
      file: path,
    });
  return { sizeBytes: Number(found.size), mtimeNs: String(found.mtimeNs), inode: String(found.ino) };
}

async function readExactly(handle: FileHandle, path: string, sizeBytes: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(sizeBytes);
  let filled = 0;
  while (filled < sizeBytes) {
    const { bytesRead } = await handle.read(bytes, filled, sizeBytes - filled, filled).catch((error: unknown) => {
      throw sourceError(path, error);
    });
    if (bytesRead === 0) throw sourceChanged(path, "size in bytes", `at least ${sizeBytes}`, filled);
    filled += bytesRead;
  }
  return bytes;
}

export function sourceChanged(file: string, meaning: string, expected: unknown, found: unknown): LayercastError {
  return new LayercastError(
    "source_changed",
    `${file} has changed since the reload was planned: its ${meaning} was ${expected} and is ${found} on host ${hostname()}. ` +
      "Leave a source as it is until its reload has ended, and submit again.",
    { file, changed: meaning, expected, found, host: hostname() },
  );
}

const COMPARED = [
  ["sizeBytes", "size in bytes"],
  ["mtimeNs", "modification time (ns)"],
  ["inode", "inode"],
  ["headerDigest", "header digest"],
] as const satisfies readonly (readonly [keyof CheckpointFile, string])[];
