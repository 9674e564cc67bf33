// A checkpoint as a trainer has it: its config, its tensors in the order of their bytes, and a bucket of them as the bytes of a
// safetensors file. A bucket is never in memory as a whole.

import { open } from "node:fs/promises";
import { readCheckpointTable } from "../checkpoint/checkpoint-table.js";
import { LayercastError } from "../contract/errors.js";
import {
  bucketBytes,
  bucketHeader,
  type CutBucket,
  partRange,
  type StoredTensor,
  type TensorRows,
} from "./cut-buckets.js";
import type { StreamedBody } from "./http-requests.js";

export interface StoredCheckpoint {
  config: Record<string, unknown>;
  tensors: StoredTensor[];
}

const CHUNK_BYTES = 4 * 2 ** 20;

/** Whoever runs the command may read what they may; the roots of the orchestrator do not matter here. */
const ALLOWED_ROOTS = ["/"];

/** `source`: absolute path or file:// URI of a checkpoint directory. */
export async function readStoredCheckpoint(source: string): Promise<StoredCheckpoint> {
  const { table, config } = await readCheckpointTable(source, { allowedRoots: ALLOWED_ROOTS });
  const inOrder = [...table.tensors.values()].sort((a, b) => a.file - b.file || a.offset - b.offset);
  const tensors = inOrder.map(({ name, dtype, shape, file, offset }) => {
    return { name, dtype, shape, path: table.files[file]?.path ?? "", offset };
  });
  return { config: { ...config.fields }, tensors };
}

export function bucketBody(bucket: CutBucket): StreamedBody {
  const header = bucketHeader(bucket);
  return { sizeBytes: header.byteLength + bucketBytes(bucket), chunks: () => bucketChunks(bucket, header) };
}

async function* bucketChunks(bucket: CutBucket, header: Uint8Array): AsyncGenerator<Uint8Array> {
  yield header;
  for (const part of bucket) yield* partChunks(part);
}

async function* partChunks(part: TensorRows): AsyncGenerator<Uint8Array> {
  const { path } = part.tensor;
  const { offset, sizeBytes } = partRange(part);
  const file = await open(path, "r");
  try {
    for (let done = 0; done < sizeBytes; ) {
      const chunk = new Uint8Array(Math.min(CHUNK_BYTES, sizeBytes - done));
      const { bytesRead } = await file.read(chunk, 0, chunk.byteLength, offset + done);
      if (bytesRead === 0) throw cutShort(path, offset + done);
      yield chunk.subarray(0, bytesRead);
      done += bytesRead;
    }
  } finally {
    await file.close();
  }
}

function cutShort(path: string, at: number): LayercastError {
  return new LayercastError(
    "source_changed",
    `${path} ends at byte ${at} now: leave a checkpoint as it is while it is pushed, and push it again`,
    { file: path },
  );
}
