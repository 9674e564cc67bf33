// Rows of tensors read straight from safetensors files, without any of Layercast's own readers.

import { type FileHandle, open, readdir } from "node:fs/promises";
import { join } from "node:path";

export interface TensorRows {
  /** A row, or columns [from, from + count) of it. A vector has rows of one element. */
  row(tensor: string, row: number, columns?: { from: number; count: number }): Promise<Uint8Array>;
  close(): Promise<void>;
}

interface Place {
  file: FileHandle;
  begin: number;
  columns: number;
  elementBytes: number;
}

const ELEMENT_BYTES: Record<string, number> = { BF16: 2, F32: 4, F8_E4M3: 1 };

export async function openRows(paths: readonly string[]): Promise<TensorRows> {
  const files: FileHandle[] = [];
  const places = new Map<string, Place>();
  for (const path of paths) {
    const file = await open(path, "r");
    files.push(file);
    const headerBytes = Number(Buffer.from(await bytesAt(file, 0, 8)).readBigUInt64LE());
    const header = JSON.parse(Buffer.from(await bytesAt(file, 8, headerBytes)).toString());
    for (const [name, entry] of Object.entries(header) as [
      string,
      { dtype: string; shape: number[]; data_offsets: number[] },
    ][]) {
      if (name === "__metadata__") continue;
      const elementBytes = ELEMENT_BYTES[entry.dtype] ?? 1;
      places.set(name, {
        file,
        begin: 8 + headerBytes + (entry.data_offsets[0] ?? 0),
        columns: entry.shape[1] ?? 1,
        elementBytes,
      });
    }
  }
  return {
    async row(tensor, row, columns) {
      const place = places.get(tensor);
      if (place === undefined) throw new Error(`${tensor} is in none of ${paths.join(", ")}`);
      const { from, count } = columns ?? { from: 0, count: place.columns };
      const at = place.begin + (row * place.columns + from) * place.elementBytes;
      return bytesAt(place.file, at, count * place.elementBytes);
    },
    async close() {
      for (const file of files) await file.close();
    },
  };
}

export async function filesOf(checkpoint: string): Promise<string[]> {
  const names = await readdir(checkpoint);
  return names.filter((name) => name.endsWith(".safetensors")).map((name) => join(checkpoint, name));
}

async function bytesAt(file: FileHandle, position: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  const { bytesRead } = await file.read(bytes, 0, length, position);
  if (bytesRead !== length) throw new Error(`${length - bytesRead} bytes are missing at ${position}`);
  return bytes;
}
