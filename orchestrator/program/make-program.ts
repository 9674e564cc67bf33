// Makes programs for the native core out of numbers: which rows of which matrices are written, and where their bytes are. Only
// `find` knows the latter, and it is all in which a checkpoint on disk and a bucket that was pushed differ.

import type { LayerProgram, ProgramFile } from "../../native/native.js";
import { DTYPES, elementCount, type StoredDType } from "../contract/dtype.js";
import { LayercastError } from "../contract/errors.js";
import { SCHEMES } from "../contract/recipe.js";
import { AGREEMENT, OP, ORIGIN, SCALE, SLICE, valuesDType, WIDTHS } from "./program-tables.js";
import { firstOf, type KernelGeometry, type ScaledBy, tensorOf, type Window } from "./rank-geometry.js";
import { commonRows, type RowRange, rowCount } from "./row-ranges.js";

/** Rows [from, to) of one of the rank's matrices that are to be written. */
export interface Write extends RowRange {
  geometry: KernelGeometry;
  /** Which matrix of the kernel tensor, counted from the rank's first. */
  matrix: number;
}

/** Rows of a window, and where they are. */
export interface Piece extends RowRange {
  /** Index into the program's files. */
  file: number;
  /** Of the first of these rows, bytes from the start of the file. */
  offset: number;
  /** In bytes. */
  rowStride: number;
  colStride: number;
}

/**
 * Pieces that are rows [from, to) of a window of the written matrix, in order and without a gap. Scales, and values that must
 * agree, are asked for whole and are in one piece.
 */
export type Find<W extends Write> = (write: W, window: number, from: number, to: number) => readonly Piece[];

export interface ProgramSource<W extends Write> {
  find: Find<W>;
  /** What pieces name by their index; `find` may add to it. */
  files: ProgramFile[];
  /** By checkpoint tensor. */
  dtypes: readonly StoredDType[];
  allowNonFinite: boolean;
}

export interface ResolvedProgram {
  program: LayerProgram;
  /** What each slice is of the checkpoint, for the sentence that an error needs; rows of ORIGIN. */
  origins: Float64Array;
  /** Of the arena's tensors that the ops write, scales left out. */
  bytes: number;
}

/** `derived`: rows of a program's `derived`, made after all else. `tables`: memory to be used again; the program lies in it. */
export function makeProgram<W extends Write>(
  writes: readonly W[],
  derived: readonly { row: Float64Array }[],
  source: ProgramSource<W>,
  tables: ProgramTables = newTables(writes),
): ResolvedProgram {
  for (const table of Object.values(tables)) table.end = 0;
  let bytes = 0;
  for (const write of writes) {
    putWrite(tables, write, source);
    bytes += (write.to - write.from) * rowBytes(write.geometry);
  }
  const [ops, slices, scales, agreements, origins] = [
    filled(tables.ops),
    filled(tables.slices),
    filled(tables.scales),
    filled(tables.agreements),
    filled(tables.origins),
  ];
  const { files, allowNonFinite } = source;
  const program = { files, ops, slices, scales, agreements, derived: derivedTable(derived), allowNonFinite };
  return { program, origins, bytes };
}

function derivedTable(derived: readonly { row: Float64Array }[]): Float64Array {
  const table = new Float64Array(derived.length * WIDTHS.derived);
  derived.forEach(({ row }, index) => {
    table.set(row, index * WIDTHS.derived);
  });
  return table;
}

/** Numbers that grow row by row. */
interface Table {
  values: Float64Array;
  /** Of those filled. */
  end: number;
}

export type ProgramTables = Record<"ops" | "slices" | "scales" | "agreements" | "origins", Table>;

/** With room for one piece a window; what comes in more pieces makes them grow. */
function newTables(writes: readonly Write[]): ProgramTables {
  let windows = 0;
  for (const { geometry } of writes) windows += geometry.windows.length;
  return {
    ops: newTable(writes.length * WIDTHS.ops),
    slices: newTable(windows * WIDTHS.slices),
    origins: newTable(windows * WIDTHS.origins),
    scales: newTable(0),
    agreements: newTable(0),
  };
}

/** For a caller that is done with a program before it makes the next. */
export function reusedTables(): ProgramTables {
  return newTables([]);
}

function newTable(length: number): Table {
  return { values: new Float64Array(length), end: 0 };
}

/** Where in `values` the new row begins. */
function addRow(table: Table, width: number): number {
  const at = table.end;
  table.end += width;
  if (table.end > table.values.length) {
    const grown = new Float64Array(2 * table.end);
    grown.set(table.values);
    table.values = grown;
  }
  return at;
}

function filled({ values, end }: Table): Float64Array {
  return values.subarray(0, end);
}

/** One op: slices of the rows that it writes, then of values that must agree with the first. */
function putWrite<W extends Write>(tables: ProgramTables, write: W, source: ProgramSource<W>): void {
  const { slices, agreements } = tables;
  const { windows } = write.geometry;
  const firstSlice = slices.end / WIDTHS.slices;
  let agreeing = 0;
  for (let index = 0; index < windows.length; index++) {
    const window = windowOf(write, index);
    if (window.kind === "agreement") agreeing++;
    if (window.kind !== "rows") continue;
    const rows = rowsOfWrite(window, write);
    if (rows.from < rows.to) putSlices(tables, write, index, rows, source);
  }
  const sliceCount = slices.end / WIDTHS.slices - firstSlice;
  for (let index = 1; index <= agreeing; index++) {
    // They stand behind the first, the one that is kept.
    const { rows } = windowOf(write, index);
    const at = addRow(agreements, WIDTHS.agreements);
    agreements.values[at + AGREEMENT.slice] = firstSlice;
    agreements.values[at + AGREEMENT.with] = slices.end / WIDTHS.slices;
    putSlices(tables, write, index, { from: 0, to: rows }, source);
  }
  putOp(tables, write, firstSlice, sliceCount);
}

/**
 * Rows of a window that a write takes: of scales and of values that must agree all, else those that fill its rows. A whole matrix
 * takes all of each window, also of one that does not fit: the check of the plan must see it.
 */
export function rowsOfWrite({ kind, toRow, rows }: Window, { geometry, from, to }: Write): RowRange {
  const isWhole = from === 0 && to === geometry.rows;
  if (kind !== "rows" || isWhole) return { from: 0, to: rows };
  return { from: Math.max(0, from - toRow), to: Math.min(rows, to - toRow) };
}

/** Rows [from, to) of a window, a slice a piece. */
function putSlices<W extends Write>(
  tables: ProgramTables,
  write: W,
  index: number,
  { from, to }: RowRange,
  source: ProgramSource<W>,
): void {
  const window = windowOf(write, index);
  const { cols, scaledBy } = window;
  const dtype = dtypeOf(source.dtypes, tensorOf(window, write.matrix));
  const firstRow = window.kind === "rows" ? window.toRow - write.from : 0;
  for (const piece of source.find(write, index, from, to)) {
    const scale = scaledBy === null ? -1 : putScales(tables.scales, write, scaledBy, piece.from, source);
    const { slices } = tables;
    const at = addRow(slices, WIDTHS.slices);
    slices.values[at + SLICE.file] = piece.file;
    slices.values[at + SLICE.offset] = piece.offset;
    slices.values[at + SLICE.rowStride] = piece.rowStride;
    slices.values[at + SLICE.rows] = piece.to - piece.from;
    slices.values[at + SLICE.cols] = cols;
    slices.values[at + SLICE.dtype] = DTYPES[dtype].code;
    slices.values[at + SLICE.toRow] = firstRow + (window.kind === "rows" ? piece.from : 0);
    slices.values[at + SLICE.colStride] = piece.colStride;
    slices.values[at + SLICE.scale] = scale;
    putOrigin(tables.origins, window, write.matrix, piece.from);
  }
}

function putOrigin(origins: Table, window: Window, matrix: number, row: number): void {
  const at = addRow(origins, WIDTHS.origins);
  origins.values[at + ORIGIN.tensor] = tensorOf(window, matrix);
  origins.values[at + ORIGIN.first] = firstOf(window, matrix) + row * window.rowStride;
  origins.values[at + ORIGIN.rowStride] = window.rowStride;
  origins.values[at + ORIGIN.colStride] = window.colStride;
}

/** The scales of codes that begin at row `fromRow` of their window; returns their row of the table. */
function putScales<W extends Write>(
  scales: Table,
  write: W,
  by: ScaledBy,
  fromRow: number,
  source: ProgramSource<W>,
): number {
  const window = windowOf(write, by.window);
  const [piece] = source.find(write, by.window, 0, window.rows);
  if (piece === undefined)
    throw new LayercastError(
      "internal",
      `${write.geometry.kernel.name} is to be written without the scales of its codes.`,
    );
  const at = addRow(scales, WIDTHS.scales);
  scales.values[at + SCALE.file] = piece.file;
  scales.values[at + SCALE.offset] = piece.offset;
  scales.values[at + SCALE.rowStride] = piece.rowStride;
  scales.values[at + SCALE.dtype] = DTYPES[dtypeOf(source.dtypes, tensorOf(window, write.matrix))].code;
  scales.values[at + SCALE.blockRows] = by.blockRows;
  scales.values[at + SCALE.blockCols] = by.blockCols;
  scales.values[at + SCALE.firstRow] = by.firstRow + fromRow;
  scales.values[at + SCALE.firstCol] = by.firstCol;
  return at / WIDTHS.scales;
}

/** The op of the whole matrix, made that of some of its rows. */
function putOp({ ops, slices }: ProgramTables, write: Write, firstSlice: number, sliceCount: number): void {
  const { geometry, matrix, from, to } = write;
  const at = addRow(ops, WIDTHS.ops);
  const row = ops.values;
  row.set(geometry.op, at);
  add(row, at + OP.outOffset, matrix * geometry.outBytes + from * rowBytes(geometry));
  if (geometry.kernel.scale !== null)
    add(row, at + OP.scaleOffset, matrix * geometry.scaleBytes + F32_BYTES * scalesBefore(geometry, from));
  if (to - from < geometry.rows) {
    row[at + OP.rows] = to - from;
    row[at + OP.zeroRows] =
      geometry.kernel.constant === null ? rowCount(commonRows(geometry.unfilled, [{ from, to }])) : 0;
  }
  row[at + OP.firstSlice] = firstSlice;
  row[at + OP.sliceCount] = sliceCount;
  // Values that have the wanted dtype already are copied as they are.
  if (sliceCount > 0 && row[at + OP.roundDtype] === valuesDType(slices.values, firstSlice, sliceCount))
    row[at + OP.roundDtype] = -1;
}

/** How many of a matrix's scales belong to its first rows: those of a matrix of these alone, for scales end where they do. */
function scalesBefore({ kernel, cols }: KernelGeometry, rows: number): number {
  const { rowsTogether, scaleShape } = SCHEMES[kernel.scheme];
  return rowsTogether === "all" || rows === 0 ? 0 : elementCount(scaleShape(rows, cols));
}

function add(table: Float64Array, at: number, summand: number): void {
  table[at] = (table[at] ?? 0) + summand;
}

function rowBytes({ kernel, cols }: KernelGeometry): number {
  return cols * DTYPES[kernel.dtype].bytes;
}

function windowOf({ geometry }: Write, index: number): Window {
  const window = geometry.windows[index];
  if (window === undefined) throw new RangeError(`${geometry.kernel.name} has no window ${index}`);
  return window;
}

export function dtypeOf(dtypes: readonly StoredDType[], tensor: number): StoredDType {
  const dtype = dtypes[tensor];
  if (dtype === undefined)
    throw new LayercastError("internal", `The source has no tensor ${tensor}: it is of another layout.`);
  return dtype;
}

const F32_BYTES = 4;
