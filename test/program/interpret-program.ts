// Runs a program that quantizes nothing over bytes in memory, as slowly and as plainly as can be: the tests' own idea of what
// the native core does with one. Counts how often each byte of the arena is written.

import {
  AGREEMENT_FIELDS,
  DERIVED_FIELDS,
  type LayerProgram,
  OP_FIELDS,
  SCALE_FIELDS,
  SLICE_FIELDS,
} from "../../native/native.js";
import { DTYPES } from "../../orchestrator/contract/dtype.js";
import type { ArenaLayout, Plan } from "../../orchestrator/contract/plan.js";
import { SCHEMES } from "../../orchestrator/contract/recipe.js";
import { createResolver } from "../planner/resolver.js";

export interface FilledArena {
  bytes: Uint8Array;
  /** Times each byte was written. */
  writes: Uint8Array;
}

/** The whole of a rank's arena: all layers, both phases. */
export function fillArena(
  plan: Plan,
  arena: ArenaLayout,
  rank: number,
  files: ReadonlyMap<string, Uint8Array>,
): FilledArena {
  const filled = { bytes: new Uint8Array(arena.dataBytes).fill(0xa5), writes: new Uint8Array(arena.dataBytes) };
  const resolve = createResolver(plan.layout, arena);
  const layers = [...plan.layout.layers.keys()];
  for (const phase of ["layer", "finalize"] as const) {
    interpret(resolve(plan.source, { layers, rank, phase, allowNonFinite: false }).program, files, filled);
  }
  return filled;
}

type Row<Fields extends readonly string[]> = Record<Fields[number], number>;

export function rowsOf<const Fields extends readonly string[]>(fields: Fields, table: Float64Array): Row<Fields>[] {
  return Array.from({ length: table.length / fields.length }, (_, row) => {
    const entries = fields.map((field, at) => [field, table[row * fields.length + at]]);
    return Object.fromEntries(entries) as Row<Fields>;
  });
}

type Slice = Row<typeof SLICE_FIELDS>;

/** Reads the checkpoint as the program's slices do. */
interface Reader {
  element(slice: Slice, row: number, col: number): Uint8Array;
  /** The product of code and scale, for slices with one. */
  product(slice: Slice, row: number, col: number): number;
}

function readerOf(program: LayerProgram, files: ReadonlyMap<string, Uint8Array>): Reader {
  const contents = program.files.map(({ path }) => files.get(path));
  const scales = rowsOf(SCALE_FIELDS, program.scales);
  const read = (file: number, at: number, bytes: number): Uint8Array => {
    const element = contents[file]?.subarray(at, at + bytes);
    if (element?.byteLength !== bytes) throw new Error("a slice reads past its file, or one that is not there");
    return element;
  };
  const element = (slice: Slice, row: number, col: number) =>
    read(slice.file, slice.offset + row * slice.rowStride + col * slice.colStride, bytesOf(slice.dtype));
  return {
    element,
    product(slice, row, col) {
      const scale = scales[slice.scale];
      if (scale === undefined) throw new Error(`the program has no scale ${slice.scale}`);
      const scaleRow = Math.floor((scale.firstRow + row) / scale.blockRows);
      const scaleCol = Math.floor((scale.firstCol + col) / scale.blockCols);
      const bytes = bytesOf(scale.dtype);
      const factor = read(scale.file, scale.offset + scaleRow * scale.rowStride + scaleCol * bytes, bytes);
      return Math.fround(decoded(element(slice, row, col), slice.dtype) * decoded(factor, scale.dtype));
    },
  };
}

export function interpret(program: LayerProgram, files: ReadonlyMap<string, Uint8Array>, arena: FilledArena): void {
  const slices = rowsOf(SLICE_FIELDS, program.slices);
  const reader = readerOf(program, files);
  for (const pair of rowsOf(AGREEMENT_FIELDS, program.agreements)) {
    const [one, other] = [slices[pair.slice], slices[pair.with]].map((slice) =>
      slice === undefined ? Number.NaN : decoded(reader.element(slice, 0, 0), slice.dtype),
    );
    if (one !== other) throw new Error(`slices ${pair.slice} and ${pair.with} differ: ${one} and ${other}`);
  }
  for (const op of rowsOf(OP_FIELDS, program.ops)) interpretOp(op, slices, reader, arena);
  for (const row of rowsOf(DERIVED_FIELDS, program.derived)) derive(row, arena);
}

function interpretOp(op: Row<typeof OP_FIELDS>, slices: Slice[], reader: Reader, arena: FilledArena): void {
  if (op.scheme !== 0) throw new Error("the interpreter quantizes nothing");
  const outBytes = bytesOf(op.outDtype);
  const put = (row: number, col: number, bytes: Uint8Array) =>
    write(arena, op.outOffset + (row * op.cols + col) * outBytes, bytes);
  const ofOp = slices.slice(op.firstSlice, op.firstSlice + op.sliceCount);
  const isMixed = new Set(ofOp.map(({ dtype }) => dtype)).size > 1;
  for (const slice of ofOp) {
    const dtype = slice.scale === -1 ? slice.dtype : DTYPES.F32.code;
    if (dtype === op.outDtype && op.roundDtype !== -1 && !isMixed)
      throw new Error("values of the wanted dtype are rounded to it");
    const element = (row: number, col: number): Uint8Array => {
      if (slice.scale !== -1) return encoded(reader.product(slice, row, col), op.outDtype);
      const found = reader.element(slice, row, col);
      return dtype === op.outDtype ? found : encoded(decoded(found, dtype), op.outDtype);
    };
    for (let row = 0; row < slice.rows; row++)
      for (let col = 0; col < slice.cols; col++) put(slice.toRow + row, col, element(row, col));
  }
  const fill = Number.isNaN(op.constant) ? new Uint8Array(outBytes) : encoded(op.constant, op.outDtype);
  fillTheRest(op, slices.slice(op.firstSlice, op.firstSlice + op.sliceCount), (row, col) => put(row, col, fill));
}

/** Rows and columns that no slice fills; there are as many as the op says. */
function fillTheRest(op: Row<typeof OP_FIELDS>, slices: Slice[], put: (row: number, col: number) => void): void {
  const end = op.cols - op.zeroCols;
  let zeroRows = 0;
  for (let row = 0; row < op.rows; row++) {
    const slice = slices.find(({ toRow, rows }) => toRow <= row && row < toRow + rows);
    if (slice === undefined) zeroRows++;
    else if (slice.cols !== end) throw new Error(`a slice of ${slice.cols} columns fills ${end}`);
    for (let col = slice?.cols ?? 0; col < op.cols; col++) put(row, col);
  }
  if (zeroRows !== (Number.isNaN(op.constant) ? op.zeroRows : op.rows))
    throw new Error(`${zeroRows} rows have no slice, ${op.zeroRows} are said to be zero`);
}

/** Rows of each head of a matrix that lies finished in the arena. */
function derive(derived: Row<typeof DERIVED_FIELDS>, arena: FilledArena): void {
  const { heads, headRows, firstRow, rows, cols } = derived;
  const inBytes = bytesOf(derived.weightDtype);
  const outBytes = bytesOf(derived.outDtype);
  for (let head = 0; head < heads; head++) {
    for (let row = 0; row < rows; row++) {
      for (let col = 0; col < cols; col++) {
        const from = head * headRows + firstRow + row;
        const at = derived.weightOffset + (from * cols + col) * inBytes;
        const held = arena.bytes.subarray(at, at + inBytes);
        const scaled = derived.scheme === SCHEMES.none.code ? null : decoded(held, derived.weightDtype);
        const value = scaled === null ? null : Math.fround(scaled * scaleAt(derived, arena, from, col));
        const within = derived.transposed === 1 ? col * rows + row : row * cols + col;
        const to = derived.outOffset + (head * rows * cols + within) * outBytes;
        write(arena, to, value === null ? held : encoded(value, derived.outDtype));
      }
    }
  }
}

function scaleAt(
  { scheme, scaleOffset, cols }: Row<typeof DERIVED_FIELDS>,
  arena: FilledArena,
  row: number,
  col: number,
) {
  const blocksAcross = Math.ceil(cols / 128);
  const index =
    scheme === SCHEMES["fp8-tensor"].code
      ? 0
      : scheme === SCHEMES["fp8-channel"].code
        ? row
        : Math.floor(row / 128) * blocksAcross + Math.floor(col / 128);
  const at = scaleOffset + index * 4;
  return decoded(arena.bytes.subarray(at, at + 4), DTYPES.F32.code);
}

function write(arena: FilledArena, at: number, bytes: Uint8Array): void {
  arena.bytes.set(bytes, at);
  for (let byte = at; byte < at + bytes.byteLength; byte++) arena.writes[byte] = (arena.writes[byte] ?? 0) + 1;
}

/** The value of an element of this dtype code. */
export function decoded(bytes: Uint8Array, dtype: number): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  switch (dtype) {
    case DTYPES.F32.code:
      return view.getFloat32(0, true);
    case DTYPES.BF16.code:
      return new Float32Array(Uint32Array.of(view.getUint16(0, true) << 16).buffer)[0] ?? 0;
    case DTYPES.F8_E8M0.code:
      return view.getUint8(0) === 0xff ? Number.NaN : 2 ** (view.getUint8(0) - 127);
    case DTYPES.F8_E4M3.code: {
      const code = view.getUint8(0);
      const exponent = (code >> 3) & 15;
      const mantissa = code & 7;
      const magnitude = exponent === 0 ? mantissa * 2 ** -9 : (8 + mantissa) * 2 ** (exponent - 10);
      return (code & 0x7f) === 0x7f ? Number.NaN : code >= 0x80 ? -magnitude : magnitude;
    }
    default:
      throw new Error(`the interpreter reads no dtype ${dtype}`);
  }
}

/** Rounded to nearest even. */
export function encoded(value: number, dtype: number): Uint8Array {
  const bytes = new Uint8Array(Float32Array.of(value).buffer);
  if (dtype === DTYPES.F32.code) return bytes;
  if (dtype !== DTYPES.BF16.code) throw new Error(`the interpreter writes no dtype ${dtype}`);
  const bits = new DataView(bytes.buffer).getUint32(0, true);
  const rounded = (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
  return Uint8Array.of(rounded & 0xff, (rounded >> 8) & 0xff);
}

function bytesOf(code: number): number {
  const bytes = DTYPE_BYTES.get(code);
  if (bytes === undefined) throw new Error(`no dtype has code ${code}`);
  return bytes;
}

const DTYPE_BYTES = new Map<number, number>(Object.values(DTYPES).map(({ code, bytes }) => [code, bytes]));
