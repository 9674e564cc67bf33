// Whether two buckets that hold the same rows of the same tensors hold the same bytes of them.

import { type FileHandle, open } from "node:fs/promises";
import { readCheckpointFile } from "../../checkpoint/checkpoint-file.js";
import type { CheckpointFile } from "../../contract/plan.js";

export async function hasEqualTensors(one: CheckpointFile, other: CheckpointFile): Promise<boolean> {
  const [a, b] = await Promise.all([readCheckpointFile(one.path), readCheckpointFile(other.path)]).catch(() => [
    null,
    null,
  ]);
  if (a === null || b === null) return false; // one of them is not to be had any more
  const offsets = new Map(b.header.tensors.map(({ name, offset }) => [name, offset]));
  const [first, second] = await Promise.all([open(one.path), open(other.path)]);
  const buffers: Buffers = [Buffer.alloc(PIECE_BYTES), Buffer.alloc(PIECE_BYTES)];
  try {
    for (const { name, offset, sizeBytes } of a.header.tensors) {
      const at = offsets.get(name);
      if (at === undefined || !(await hasEqualBytes([first, offset], [second, at], sizeBytes, buffers))) return false;
    }
    return true;
  } finally {
    await Promise.all([first.close(), second.close()]);
  }
}

type Place = readonly [file: FileHandle, offset: number];
type Buffers = readonly [Buffer, Buffer];

async function hasEqualBytes(
  [one, at]: Place,
  [other, otherAt]: Place,
  sizeBytes: number,
  buffers: Buffers,
): Promise<boolean> {
  for (let done = 0; done < sizeBytes; done += PIECE_BYTES) {
    const bytes = Math.min(PIECE_BYTES, sizeBytes - done);
    const read = await Promise.all([
      one.read(buffers[0], 0, bytes, at + done),
      other.read(buffers[1], 0, bytes, otherAt + done),
    ]);
    if (read.some(({ bytesRead }) => bytesRead !== bytes)) return false;
    if (!buffers[0].subarray(0, bytes).equals(buffers[1].subarray(0, bytes))) return false;
  }
  return true;
}

const PIECE_BYTES = 4 * 2 ** 20;
