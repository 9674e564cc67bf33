// The tensors of a checkpoint -> the buckets of a push: an order, parts of at most so many rows, and as many of them in a bucket
// as have room. Pure.

import { FORMAT_DTYPE_BITS, type FormatDType } from "../contract/dtype.js";
import { ROW_RANGES_KEY } from "../contract/push.js";

export const PUSH_ORDERS = ["checkpoint", "module", "random"] as const;
export type PushOrder = (typeof PUSH_ORDERS)[number];

/** A tensor, and where its bytes lie. */
export interface StoredTensor {
  name: string;
  dtype: FormatDType;
  shape: readonly number[];
  path: string;
  /** Of its first byte, from the start of the file. */
  offset: number;
}

/** Rows of a tensor's first dimension; a scalar is one row. */
export interface TensorRows {
  tensor: StoredTensor;
  firstRow: number;
  rows: number;
}

/** No tensor is in it twice: a file has one entry by a name. */
export type CutBucket = readonly TensorRows[];

export interface BucketCut {
  order: PushOrder;
  /** Of the random order. */
  seed: number;
  /** A bucket has no more tensor bytes than this, unless a single part has. */
  bucketBytes: number;
  /** A part has no more rows than this; null: tensors go whole. */
  rows: number | null;
}

/**
 * `tensors` in the order of the checkpoint. `byModule` are names in the order in which modules are complete the soonest, of
 * which alone the order `module` sends: it leaves out what nobody needs.
 */
export function cutBuckets(tensors: readonly StoredTensor[], byModule: readonly string[], cut: BucketCut): CutBucket[] {
  const ordered = cut.order === "module" ? pickInOrder(tensors, byModule) : tensors;
  const parts = ordered.flatMap((tensor) => cutRows(tensor, cut.rows));
  return fillBuckets(cut.order === "random" ? shuffled(parts, cut.seed) : parts, cut.bucketBytes);
}

function pickInOrder(tensors: readonly StoredTensor[], names: readonly string[]): StoredTensor[] {
  const byName = new Map(tensors.map((tensor) => [tensor.name, tensor]));
  return names.flatMap((name) => byName.get(name) ?? []);
}

function cutRows(tensor: StoredTensor, mostRows: number | null): TensorRows[] {
  const total = rowCount(tensor.shape);
  const step = mostRows === null || !Number.isInteger(rowBytes(tensor)) ? total : mostRows;
  const parts: TensorRows[] = [];
  for (let firstRow = 0; firstRow < total; firstRow += step) {
    parts.push({ tensor, firstRow, rows: Math.min(step, total - firstRow) });
  }
  return parts.length > 0 ? parts : [{ tensor, firstRow: 0, rows: 0 }];
}

function fillBuckets(parts: readonly TensorRows[], bucketBytes: number): CutBucket[] {
  const buckets: TensorRows[][] = [];
  let names = new Set<string>();
  let bytes = 0;
  for (const part of parts) {
    const size = partBytes(part);
    const open = buckets.at(-1);
    if (open === undefined || bytes + size > bucketBytes || names.has(part.tensor.name)) {
      buckets.push([part]);
      names = new Set();
      bytes = 0;
    } else {
      open.push(part);
    }
    names.add(part.tensor.name);
    bytes += size;
  }
  return buckets;
}

/** Fisher-Yates, with the numbers of Mulberry32: the same seed, the same order. */
function shuffled<Item>(items: readonly Item[], seed: number): Item[] {
  let state = seed >>> 0;
  const below = (bound: number) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * bound);
  };
  const result = [...items];
  for (let last = result.length - 1; last > 0; last--) {
    const other = below(last + 1);
    [result[last], result[other]] = [result[other] as Item, result[last] as Item];
  }
  return result;
}

/** Everything of the bucket's safetensors file before the tensors' bytes, which follow in the bucket's order. */
export function bucketHeader(bucket: CutBucket): Uint8Array {
  const ranges = bucket.filter((part) => part.rows !== rowCount(part.tensor.shape)).map(rangeEntry);
  const metadata =
    ranges.length === 0 ? {} : { __metadata__: { [ROW_RANGES_KEY]: JSON.stringify(Object.fromEntries(ranges)) } };
  let end = 0;
  const entries = bucket.map((part) => {
    const begin = end;
    end += partBytes(part);
    const { name, dtype } = part.tensor;
    return [name, { dtype, shape: partShape(part), data_offsets: [begin, end] }] as const;
  });
  return withLength(JSON.stringify({ ...metadata, ...Object.fromEntries(entries) }));
}

function rangeEntry({ tensor, firstRow }: TensorRows) {
  const offset = tensor.shape.map((_, dimension) => (dimension === 0 ? firstRow : 0));
  return [tensor.name, { offset, global_shape: tensor.shape }] as const;
}

function partShape({ tensor, rows }: TensorRows): number[] {
  return tensor.shape.length === 0 ? [] : [rows, ...tensor.shape.slice(1)];
}

/** Padded with blanks, so that the tensors' bytes begin at a multiple of 8. */
function withLength(json: string): Uint8Array {
  const text = Buffer.from(json);
  const header = Buffer.alloc(8 + Math.ceil(text.byteLength / 8) * 8, " ");
  header.writeBigUInt64LE(BigInt(header.byteLength - 8));
  text.copy(header, 8);
  return header;
}

/** Of the tensors, without the header. */
export function bucketBytes(bucket: CutBucket): number {
  return bucket.reduce((sum, part) => sum + partBytes(part), 0);
}

/** Where the part's bytes lie in its tensor's file. */
export function partRange({ tensor, firstRow, rows }: TensorRows): { offset: number; sizeBytes: number } {
  const bytes = rowBytes(tensor);
  return { offset: tensor.offset + firstRow * bytes, sizeBytes: rows * bytes };
}

const partBytes = (part: TensorRows) => partRange(part).sizeBytes;

export function rowCount(shape: readonly number[]): number {
  return shape[0] ?? 1;
}

/** A fraction where a row of a packed dtype ends within a byte; such a tensor is never cut. */
function rowBytes({ dtype, shape }: StoredTensor): number {
  return (shape.slice(1).reduce((product, size) => product * size, 1) * FORMAT_DTYPE_BITS[dtype]) / 8;
}
