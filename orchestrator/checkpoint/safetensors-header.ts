// Turns the first bytes of a safetensors file into its list of tensors, or into `checkpoint_invalid` with the file, the
// tensor and the values. Pure. Whoever wrote the file is a stranger: every length, name and offset is checked before use.
//
//   bytes 0..7   header length N, unsigned 64-bit little-endian
//   N bytes      JSON: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, "__metadata__": {...}}
//   the rest     the tensors' bytes: every byte belongs to exactly one tensor; offsets count from here

import { countOf } from "../contract/count-of.js";
import { FORMAT_DTYPE_BITS, type FormatDType } from "../contract/dtype.js";
import { type ErrorDetails, LayercastError } from "../contract/errors.js";
import { type JsonObject, parseStrictJson, quoted, type StrictJson, StrictJsonError } from "./strict-json.js";

/** Bytes of the length that a file starts with. */
export const HEADER_PREFIX_BYTES = 8;
/** A longer header is refused, as the reference reader does. */
export const MAX_HEADER_BYTES = 100_000_000;

export interface HeaderTensor {
  name: string;
  dtype: FormatDType;
  shape: number[];
  /** Of the first byte, from the start of the file. */
  offset: number;
  sizeBytes: number;
}

export interface SafetensorsHeader {
  metadata: Map<string, string>;
  /** In the order of their bytes. */
  tensors: HeaderTensor[];
  /** Where the tensors' bytes begin, from the start of the file. */
  dataOffset: number;
}

/** Length of the JSON that follows the 8 bytes of `prefix`. */
export function readHeaderLength(prefix: Uint8Array, fileSizeBytes: number, file: string): number {
  if (fileSizeBytes < HEADER_PREFIX_BYTES || prefix.byteLength < HEADER_PREFIX_BYTES)
    throw invalid(file, `has ${countOf(fileSizeBytes, "byte")}, too few for the length of a safetensors header`);
  const length = new DataView(prefix.buffer, prefix.byteOffset, HEADER_PREFIX_BYTES).getBigUint64(0, true);
  if (length > MAX_HEADER_BYTES)
    throw invalid(
      file,
      `says that its header has ${countOf(length, "byte")}, more than the ${MAX_HEADER_BYTES} allowed`,
    );
  if (Number(length) > fileSizeBytes - HEADER_PREFIX_BYTES)
    throw invalid(
      file,
      `says that its header has ${countOf(length, "byte")}, but the whole file has ${fileSizeBytes}, as one that was truncated`,
    );
  return Number(length);
}

/** `headerBytes` are the file's first bytes: the length and all of the JSON. */
export function parseSafetensorsHeader(
  headerBytes: Uint8Array,
  fileSizeBytes: number,
  file = "the file",
): SafetensorsHeader {
  const length = readHeaderLength(headerBytes, fileSizeBytes, file);
  const dataOffset = HEADER_PREFIX_BYTES + length;
  if (headerBytes.byteLength < dataOffset)
    throw invalid(
      file,
      `has a header of ${countOf(length, "byte")}, of which only ${headerBytes.byteLength} could be read`,
    );
  const json = parseHeaderJson(headerBytes.subarray(HEADER_PREFIX_BYTES, dataOffset), file);
  const metadata = readMetadata(json.get(METADATA), file);
  const tensors: HeaderTensor[] = [];
  for (const [name, entry] of json) {
    if (name !== METADATA) tensors.push(readTensor(name, entry, dataOffset, fileSizeBytes, file));
  }
  // Stable by size within an offset: tensors without bytes come before the one that starts there.
  tensors.sort((a, b) => a.offset - b.offset || a.sizeBytes - b.sizeBytes);
  checkEveryByteOnce(tensors, dataOffset, fileSizeBytes, file);
  return { metadata, tensors, dataOffset };
}

function parseHeaderJson(bytes: Uint8Array, file: string): JsonObject {
  if (bytes[0] !== OPEN_BRACE) throw invalid(file, "has a header that does not begin with an opening brace");
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw invalid(file, "has a header that is not UTF-8");
  }
  try {
    // It begins with a brace, so it is an object.
    return parseStrictJson(text) as JsonObject;
  } catch (error) {
    if (error instanceof StrictJsonError) throw invalid(file, `has a header that is not right: ${error.message}`);
    throw error;
  }
}

function readMetadata(entry: StrictJson | undefined, file: string): Map<string, string> {
  const metadata = new Map<string, string>();
  if (entry === undefined) return metadata;
  if (!(entry instanceof Map)) throw invalid(file, "has a __metadata__ that is not an object");
  for (const [key, value] of entry) {
    if (typeof value !== "string") throw invalid(file, `has a __metadata__ whose ${quoted(key)} is not a string`);
    metadata.set(key, value);
  }
  return metadata;
}

function readTensor(
  name: string,
  entry: StrictJson,
  dataOffset: number,
  fileSizeBytes: number,
  file: string,
): HeaderTensor {
  const wrong = (what: string) => invalid(file, `has a tensor ${quoted(name)} ${what}`, { tensor: name });
  if (!(entry instanceof Map)) throw wrong("that is not an object");
  const dtype = entry.get("dtype");
  if (typeof dtype !== "string" || !isFormatDType(dtype))
    throw wrong(`of dtype ${typeof dtype === "string" ? quoted(dtype) : "missing"}, which the format does not know`);
  const shape = entry.get("shape");
  if (!isIndexList(shape)) throw wrong("whose shape is not a list of whole numbers from 0 to 2^53 - 1");
  const offsets = entry.get("data_offsets");
  if (!isIndexList(offsets) || offsets.length !== 2)
    throw wrong("whose data_offsets are not two whole numbers from 0 to 2^53 - 1");
  const [begin = 0, end = 0] = offsets;
  if (begin > end) throw wrong(`whose bytes begin at ${begin}, after their end at ${end}`);
  const dataBytes = fileSizeBytes - dataOffset;
  if (end > dataBytes)
    throw wrong(`whose bytes end at ${end}, past the file's ${dataBytes} tensor bytes, as in one that was truncated`);
  const expectedBytes = tensorBytes(dtype, shape);
  if (expectedBytes === null)
    throw wrong(`of dtype ${dtype} whose shape ${shapeText(shape)} has no size in bytes below 2^53`);
  if (expectedBytes !== end - begin)
    throw wrong(
      `of dtype ${dtype} and shape ${shapeText(shape)}, which takes ${countOf(expectedBytes, "byte")}, but has ${end - begin}`,
    );
  return { name, dtype, shape, offset: dataOffset + begin, sizeBytes: end - begin };
}

/** Null: beyond 2^53, or a fraction of a byte. */
function tensorBytes(dtype: FormatDType, shape: readonly number[]): number | null {
  const bits = FORMAT_DTYPE_BITS[dtype];
  let elements = 1;
  for (const dimension of shape) {
    elements *= dimension;
    if (!Number.isSafeInteger(elements)) return null;
  }
  if (bits % 8 === 0) return Number.isSafeInteger((elements * bits) / 8) ? (elements * bits) / 8 : null;
  return Number.isSafeInteger(elements * bits) && (elements * bits) % 8 === 0 ? (elements * bits) / 8 : null;
}

function checkEveryByteOnce(
  tensors: readonly HeaderTensor[],
  dataOffset: number,
  fileSizeBytes: number,
  file: string,
): void {
  let end = dataOffset;
  let before = "the header";
  for (const tensor of tensors) {
    const between = () => `${quoted(before)} and ${quoted(tensor.name)}`;
    if (tensor.offset < end)
      throw invalid(file, `has tensors that overlap: ${between()} share ${countOf(end - tensor.offset, "byte")}`, {
        tensor: tensor.name,
      });
    if (tensor.offset > end)
      throw invalid(file, `has a hole of ${countOf(tensor.offset - end, "byte")} between ${between()}`, {
        tensor: tensor.name,
      });
    end = tensor.offset + tensor.sizeBytes;
    before = tensor.name;
  }
  if (end !== fileSizeBytes)
    throw invalid(file, `has ${countOf(fileSizeBytes - end, "byte")} after its last tensor that belong to none`);
}

function shapeText(shape: readonly number[]): string {
  return shape.length > 8
    ? `[${shape.slice(0, 8).join(", ")}, … ${countOf(shape.length, "dimension")}]`
    : `[${shape.join(", ")}]`;
}

function isIndexList(value: StrictJson | undefined): value is number[] {
  return Array.isArray(value) && value.every((item) => typeof item === "number" && item >= 0);
}

function isFormatDType(name: string): name is FormatDType {
  return Object.hasOwn(FORMAT_DTYPE_BITS, name);
}

function invalid(file: string, what: string, details: ErrorDetails = {}): LayercastError {
  return new LayercastError("checkpoint_invalid", `${file} ${what}. Write the file again.`, { file, ...details });
}

const METADATA = "__metadata__";
const OPEN_BRACE = 0x7b;
