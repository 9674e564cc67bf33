// Builds safetensors bytes for tests: rightly from tensors, or from any header text and data whatever.

import { FORMAT_DTYPE_BITS, type FormatDType } from "../../orchestrator/contract/dtype.js";

export interface BuiltTensor {
  dtype: FormatDType;
  shape: number[];
  /** Default: a pattern that differs from byte to byte. */
  bytes?: Uint8Array;
}

export function withHeader(header: string | Uint8Array, data: Uint8Array | number = 0): Uint8Array {
  const json = typeof header === "string" ? new TextEncoder().encode(header) : header;
  const body = typeof data === "number" ? new Uint8Array(data) : data;
  const file = new Uint8Array(8 + json.byteLength + body.byteLength);
  new DataView(file.buffer).setBigUint64(0, BigInt(json.byteLength), true);
  file.set(json, 8);
  file.set(body, 8 + json.byteLength);
  return file;
}

export function buildSafetensors(tensors: Record<string, BuiltTensor>, metadata?: Record<string, string>): Uint8Array {
  const entries: string[] = metadata === undefined ? [] : [`"__metadata__":${JSON.stringify(metadata)}`];
  const chunks: Uint8Array[] = [];
  let end = 0;
  for (const [name, { dtype, shape, bytes }] of Object.entries(tensors)) {
    const sizeBytes = (shape.reduce((product, size) => product * size, 1) * FORMAT_DTYPE_BITS[dtype]) / 8;
    const chunk = bytes ?? Uint8Array.from({ length: sizeBytes }, (_, index) => (end + index * 7) % 251);
    entries.push(`${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [end, end + sizeBytes] })}`);
    chunks.push(chunk);
    end += sizeBytes;
  }
  return withHeader(`{${entries.join(",")}}`, Buffer.concat(chunks));
}
