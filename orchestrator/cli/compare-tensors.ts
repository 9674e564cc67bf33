// A safetensors file -> what each tensor is and the digest of its bytes; and how that differs from what is expected. Reads
// the format by itself, on purpose: it checks what the rest of Layercast wrote.

import { createHash } from "node:crypto";
import { type FileHandle, open } from "node:fs/promises";
import { LayercastError } from "../contract/errors.js";

/** dtype, shape, sha256 of the little-endian bytes. */
export type TensorDigest = [dtype: string, shape: number[], sha256: string];
export type Golden = Record<string, TensorDigest>;

export interface Comparison {
  matched: number;
  /** One line a tensor that is missing, unexpected or other than expected. */
  differences: string[];
}

interface HeaderEntry {
  dtype: string;
  shape: number[];
  data_offsets: [begin: number, end: number];
}

const LENGTH_BYTES = 8;

export async function readTensorDigests(path: string): Promise<Golden> {
  const file = await open(path, "r");
  try {
    const headerBytes = Number((await readRange(file, path, 0, LENGTH_BYTES)).readBigUInt64LE());
    const header = JSON.parse((await readRange(file, path, LENGTH_BYTES, headerBytes)).toString()) as Record<
      string,
      HeaderEntry
    >;
    const digests: Golden = {};
    for (const [name, { dtype, shape, data_offsets }] of Object.entries(header)) {
      if (name === "__metadata__") continue;
      const [begin, end] = data_offsets;
      const bytes = await readRange(file, path, LENGTH_BYTES + headerBytes + begin, end - begin);
      digests[name] = [dtype, shape, createHash("sha256").update(bytes).digest("hex")];
    }
    return digests;
  } finally {
    await file.close();
  }
}

async function readRange(file: FileHandle, path: string, position: number, bytes: number): Promise<Buffer> {
  const buffer = Buffer.alloc(bytes);
  const { bytesRead } = bytes === 0 ? { bytesRead: 0 } : await file.read(buffer, 0, bytes, position);
  if (bytesRead === bytes) return buffer;
  throw new LayercastError("io_error", `${path} ends at byte ${position + bytesRead}, ${bytes - bytesRead} short`, {
    path,
  });
}

export function compareTensors(found: Golden, expected: Golden): Comparison {
  const names = [...new Set([...Object.keys(expected), ...Object.keys(found)])].sort();
  const differences = names.flatMap((name) => difference(name, found[name], expected[name]));
  return { matched: names.length - differences.length, differences };
}

function difference(name: string, found: TensorDigest | undefined, expected: TensorDigest | undefined): string[] {
  if (found === undefined) return [`${name} is missing`];
  if (expected === undefined) return [`${name} is not expected`];
  const [before, after] = [JSON.stringify(expected), JSON.stringify(found)];
  return before === after ? [] : [`${name} is ${after}, expected ${before}`];
}
