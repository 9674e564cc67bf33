// The rules of the safetensors format and of its index, written down a second time, from the format's description and with
// other means: whole numbers as BigInt, every pair of tensors compared. Slow, and sharing nothing with the readers it judges.

import { isUtf8 } from "node:buffer";
import { entryOf, readSlowJson, type SlowValue } from "./slow-json.js";

const LONGEST_HEADER = 100_000_000n;
const LARGEST = 2n ** 53n - 1n;
const BITS: Readonly<Record<string, bigint>> = Object.assign(Object.create(null), {
  ...{ BOOL: 8n, U8: 8n, I8: 8n, I16: 16n, U16: 16n, I32: 32n, U32: 32n, I64: 64n, U64: 64n },
  ...{ F16: 16n, BF16: 16n, F32: 32n, F64: 64n, C64: 64n, F4: 4n, F6_E2M3: 6n, F6_E3M2: 6n },
  ...{ F8_E5M2: 8n, F8_E4M3: 8n, F8_E8M0: 8n, F8_E4M3FNUZ: 8n, F8_E5M2FNUZ: 8n },
});

interface SlowTensor {
  name: string;
  dtype: string;
  shape: bigint[];
  begin: bigint;
  end: bigint;
}

export interface SlowHeader {
  tensors: SlowTensor[];
  metadata: [string, string][];
  dataOffset: bigint;
}

/** Of the header's JSON, as the first 8 bytes say; null when no file of that size can begin with them. */
export function readLengthSlowly(bytes: Uint8Array, fileSizeBytes: number): bigint | null {
  if (fileSizeBytes < 8 || bytes.length < 8) return null;
  let length = 0n;
  for (const [at, byte] of bytes.slice(0, 8).entries()) length += BigInt(byte) * 256n ** BigInt(at);
  return length <= LONGEST_HEADER && 8n + length <= BigInt(fileSizeBytes) ? length : null;
}

/** What the first bytes of a file of that size say; null when it is no safetensors file. */
export function readHeaderSlowly(bytes: Uint8Array, fileSizeBytes: number): SlowHeader | null {
  const length = readLengthSlowly(bytes, fileSizeBytes);
  if (length === null || 8n + length > BigInt(bytes.length)) return null;
  const dataOffset = 8n + length;
  const json = bytes.slice(8, Number(dataOffset));
  if (json[0] !== 0x7b || !isUtf8(json)) return null;
  const header = readSlowJson(Buffer.from(json).toString("utf8"));
  if (header?.kind !== "object") return null;
  const metadata = metadataOf(entryOf(header, "__metadata__"));
  const tensors = header.entries
    .filter(([name]) => name !== "__metadata__")
    .map(([name, value]) => tensorOf(name, value));
  if (metadata === null || !tensors.every((tensor) => tensor !== null)) return null;
  return coverExactly(tensors, BigInt(fileSizeBytes) - dataOffset) ? { tensors, metadata, dataOffset } : null;
}

function metadataOf(value: SlowValue | undefined): [string, string][] | null {
  if (value === undefined) return [];
  if (value.kind !== "object" || value.entries.some(([, { kind }]) => kind !== "string")) return null;
  return value.entries.map(([name, one]) => [name, one.kind === "string" ? one.text : ""]);
}

function tensorOf(name: string, value: SlowValue): SlowTensor | null {
  const dtype = entryOf(value, "dtype");
  const shape = wholeNumbers(entryOf(value, "shape"));
  const offsets = wholeNumbers(entryOf(value, "data_offsets"));
  const [begin, end] = offsets ?? [];
  if (dtype?.kind !== "string" || shape === null || begin === undefined || end === undefined) return null;
  const bits = BITS[dtype.text];
  if (bits === undefined || offsets?.length !== 2 || begin > end) return null;
  // An intermediate product that is too large makes a shape wrong, whatever follows it.
  const products = shape.map((_, at) => shape.slice(0, at + 1).reduce((product, size) => product * size, 1n));
  const allBits = (products.at(-1) ?? 1n) * bits;
  if (products.some((product) => product > LARGEST) || allBits !== 8n * (end - begin)) return null;
  // Of elements that are a fraction of a byte the bits are counted.
  if (bits % 8n !== 0n && allBits > LARGEST) return null;
  return { name, dtype: dtype.text, shape, begin, end };
}

/** Plainly written: no sign, fraction, exponent or zero in front. */
function wholeNumbers(value: SlowValue | undefined): bigint[] | null {
  if (value?.kind !== "array") return null;
  const numbers = value.items.map((item) =>
    item.kind === "number" && /^\d+$/.test(item.text) ? BigInt(item.text) : LARGEST + 1n,
  );
  return numbers.every((number) => number <= LARGEST) ? numbers : null;
}

/** Sizes that add up to all bytes, within the file, no two of which overlap: so every byte belongs to one tensor. */
function coverExactly(tensors: readonly SlowTensor[], dataBytes: bigint): boolean {
  const sum = tensors.reduce((bytes, { begin, end }) => bytes + end - begin, 0n);
  if (sum !== dataBytes || tensors.some(({ end }) => end > dataBytes)) return false;
  return tensors.every((one, at) =>
    tensors.slice(at + 1).every((other) => one.end <= other.begin || other.end <= one.begin),
  );
}

/** Tensor name -> file name; null when the bytes are no index. */
export function readIndexSlowly(bytes: Uint8Array): [string, string][] | null {
  if (!isUtf8(bytes)) return null;
  const index = readSlowJson(
    Buffer.from(bytes)
      .toString("utf8")
      .replace(/^\ufeff/, ""),
  );
  const map = index === null ? undefined : entryOf(index, "weight_map");
  if (map?.kind !== "object" || map.entries.length === 0) return null;
  const files = map.entries.map(([tensor, file]): [string, string] => [
    tensor,
    file.kind === "string" ? file.text : "",
  ]);
  return files.every(([, file]) => isPlainFileName(file)) ? files : null;
}

/** It can mean nothing but a file of the checkpoint's own directory. */
function isPlainFileName(name: string): boolean {
  const codes = Array.from(name, (character) => character.codePointAt(0) ?? 0);
  const isControl = (code: number) => code < 0x20 || (code >= 0x7f && code < 0xa0);
  return name.length < 256 && name.endsWith(".safetensors") && !/[\\/]/.test(name) && !codes.some(isControl);
}

const NOT_FINITE = ["NaN", "-Infinity", "Infinity"];

/**
 * The fields of a config.json, which may hold NaN and infinities; null when it is no JSON with these. JSON.parse is trusted with
 * the rest: character by character, a word outside of texts that is not the name of a field is put into quotes.
 */
export function readPythonSlowly(text: string): Record<string, unknown> | null {
  let plain = "";
  let isInText = false;
  for (let at = 0; at < text.length; ) {
    const word = isInText ? undefined : NOT_FINITE.find((one) => text.startsWith(one, at));
    const character = text[at] ?? "";
    if (word !== undefined) {
      const isName = text.slice(at + word.length).trimStart()[0] === ":";
      plain += isName ? word : `"${word}"`;
      at += word.length;
    } else if (isInText && character === "\\") {
      plain += text.slice(at, at + 2);
      at += 2;
    } else {
      if (character === '"') isInText = !isInText;
      plain += character;
      at += 1;
    }
  }
  try {
    return JSON.parse(plain) as Record<string, unknown>;
  } catch {
    return null;
  }
}
