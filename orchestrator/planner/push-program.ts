// Makes programs of what has come of a push: some rows of some matrices, each row from the bucket that brings it or from the
// rank's buffers. The counterpart of resolve.ts, where the files are known before the reload.

import type { LayerProgram, ProgramFile, Span } from "../../native/native.js";
import { DTYPES, elementCount, type StoredDType } from "../contract/dtype.js";
import { LayercastError } from "../contract/errors.js";
import { SCHEMES } from "../contract/recipe.js";
import { isTransposed, type Matrix, type Need } from "./matrix-needs.js";
import { AGREEMENT, OP, SCALE, SLICE, valuesDType, WIDTHS } from "./program-tables.js";
import type { ResolvedProgram } from "./resolve.js";
import { commonRows, type RowRange, rowCount } from "./row-ranges.js";

/** Some rows of a need, and where they are. */
export interface PlacedRows extends RowRange {
  /** Index into the program's files. */
  file: number;
  /** Of the first of these rows, bytes from the start of the file. */
  offset: number;
  /** In bytes. */
  rowStride: number;
  colStride: number;
}

/** Rows of a matrix that are to be written. */
export interface MatrixRows extends RowRange {
  matrix: Matrix;
  /** By need: rows that fill these, in order and without a gap; of scales and agreements all. */
  placed: readonly (readonly PlacedRows[])[];
}

export interface PushProgram {
  rows: readonly MatrixRows[];
  files: ProgramFile[];
  /** By checkpoint tensor. */
  dtypes: readonly StoredDType[];
  allowNonFinite: boolean;
  /** Rows of a program's `derived`, made after all else. */
  derived?: readonly Float64Array[];
}

export function pushProgram({ rows, files, dtypes, allowNonFinite, derived = [] }: PushProgram): ResolvedProgram {
  const tables: Tables = { ops: [], slices: [], scales: [], agreements: [], origins: [] };
  for (const one of rows) putRows(tables, one, dtypes);
  const { ops, slices, scales, agreements, origins } = tables;
  const program: LayerProgram = {
    files,
    ops: Float64Array.from(ops),
    slices: Float64Array.from(slices),
    scales: Float64Array.from(scales),
    agreements: Float64Array.from(agreements),
    derived: Float64Array.from(derived.flatMap((row) => [...row])),
    allowNonFinite,
  };
  return { program, origins: Float64Array.from(origins), spans: rows.flatMap(spansOf) };
}

/** Rows of numbers, one behind the other. */
interface Tables {
  ops: number[];
  slices: number[];
  scales: number[];
  agreements: number[];
  /** As ResolvedProgram's. */
  origins: number[];
}

function putRows(tables: Tables, { matrix, from, to, placed }: MatrixRows, dtypes: readonly StoredDType[]): void {
  const firstSlice = tables.slices.length / WIDTHS.slices;
  matrix.needs.forEach((need, index) => {
    if (need.kind !== "rows") return;
    for (const rows of placed[index] ?? []) putSlice(tables, { need, rows, from, matrix, placed }, dtypes);
  });
  const end = tables.slices.length / WIDTHS.slices;
  matrix.needs.forEach((need, index) => {
    const [rows] = placed[index] ?? [];
    if (need.kind !== "agreement" || rows === undefined) return;
    const slice = tables.slices.length / WIDTHS.slices;
    putSlice(tables, { need, rows, from, matrix, placed }, dtypes);
    tables.agreements.push(...filled(WIDTHS.agreements, { [AGREEMENT.slice]: firstSlice, [AGREEMENT.with]: slice }));
  });
  const slices = { table: tables.slices, first: firstSlice, count: end - firstSlice };
  tables.ops.push(...opOfRows(matrix, { from, to }, slices));
}

/** The op of the whole matrix, made that of some of its rows. */
function opOfRows(
  { op, cols, unfilled, kernel }: Matrix,
  { from, to }: RowRange,
  slices: { table: number[]; first: number; count: number },
): Float64Array {
  const made = op.slice();
  made[OP.rows] = to - from;
  made[OP.zeroRows] = kernel.constant === null ? rowCount(commonRows(unfilled, [{ from, to }])) : 0;
  made[OP.outOffset] = (op[OP.outOffset] ?? 0) + from * cols * DTYPES[kernel.dtype].bytes;
  const scaleOffset = op[OP.scaleOffset] ?? -1;
  if (scaleOffset !== -1) made[OP.scaleOffset] = scaleOffset + F32_BYTES * scalesBefore(kernel.scheme, from, cols);
  made[OP.firstSlice] = slices.first;
  made[OP.sliceCount] = slices.count;
  // Values that have the wanted dtype already are copied as they are.
  if (slices.count > 0 && made[OP.roundDtype] === valuesDType(slices.table, slices.first, slices.count))
    made[OP.roundDtype] = -1;
  return made;
}

/** How many of a matrix's scales belong to its first rows: those of a matrix of these alone, for scales end where they do. */
function scalesBefore(scheme: Matrix["kernel"]["scheme"], rows: number, cols: number): number {
  const { rowsTogether, scaleShape } = SCHEMES[scheme];
  return rowsTogether === "all" ? 0 : elementCount(scaleShape(rows, cols));
}

interface SliceOfRows {
  need: Need;
  rows: PlacedRows;
  /** First row of the matrix that the op writes. */
  from: number;
  matrix: Matrix;
  placed: MatrixRows["placed"];
}

function putSlice(
  tables: Tables,
  { need, rows, from, matrix, placed }: SliceOfRows,
  dtypes: readonly StoredDType[],
): void {
  const scale = need.scaledBy === null ? -1 : putScales(tables, need.scaledBy, { rows, matrix, placed }, dtypes);
  const common = { [SLICE.rows]: rows.to - rows.from, [SLICE.cols]: need.cols, [SLICE.scale]: scale };
  const row = filled(WIDTHS.slices, {
    ...common,
    [SLICE.file]: rows.file,
    [SLICE.offset]: rows.offset,
    [SLICE.rowStride]: rows.rowStride,
    [SLICE.colStride]: rows.colStride,
    [SLICE.dtype]: DTYPES[dtypeOf(dtypes, need.tensor)].code,
    [SLICE.toRow]: need.kind === "rows" ? need.toRow + rows.from - from : 0,
  });
  const origin = filled(WIDTHS.slices, {
    ...common,
    [SLICE.file]: need.tensor,
    [SLICE.offset]: need.first + rows.from * need.rowStride,
    [SLICE.rowStride]: need.rowStride,
    [SLICE.colStride]: need.colStride,
  });
  tables.slices.push(...row);
  tables.origins.push(...origin);
}

function putScales(
  tables: Tables,
  by: NonNullable<Need["scaledBy"]>,
  { rows, matrix, placed }: { rows: PlacedRows; matrix: Matrix; placed: MatrixRows["placed"] },
  dtypes: readonly StoredDType[],
): number {
  const need = matrix.needs[by.need];
  const [at] = placed[by.need] ?? [];
  if (need === undefined || at === undefined)
    throw new LayercastError("internal", `${matrix.kernel.name} is to be written without the scales of its codes.`);
  const row = filled(WIDTHS.scales, {
    [SCALE.file]: at.file,
    [SCALE.offset]: at.offset,
    [SCALE.rowStride]: at.rowStride,
    [SCALE.dtype]: DTYPES[dtypeOf(dtypes, need.tensor)].code,
    [SCALE.blockRows]: by.blockRows,
    [SCALE.blockCols]: by.blockCols,
    [SCALE.firstRow]: by.firstRow + rows.from,
    [SCALE.firstCol]: by.firstCol,
  });
  tables.scales.push(...row);
  return tables.scales.length / WIDTHS.scales - 1;
}

/** What is written of the arena's tensor bytes, scales left out. */
function spansOf({ matrix, from, to }: MatrixRows): Span[] {
  const { op, cols, kernel } = matrix;
  const rowBytes = cols * DTYPES[kernel.dtype].bytes;
  const spans = [{ offset: (op[OP.outOffset] ?? 0) + from * rowBytes, bytes: (to - from) * rowBytes }];
  return spans.filter(({ bytes }) => bytes > 0);
}

/** Where rows of a need are that lie as they do in their checkpoint tensor. */
export function asInCheckpoint(need: Need, elementBytes: number): Pick<PlacedRows, "rowStride" | "colStride"> {
  return { rowStride: need.rowStride * elementBytes, colStride: need.colStride * elementBytes };
}

/** The same where they are packed: rows without a gap, or columns where those lie together. */
export function packed(need: Need, elementBytes: number): Pick<PlacedRows, "rowStride" | "colStride"> {
  if (isTransposed(need)) return { rowStride: elementBytes, colStride: need.rows * elementBytes };
  return { rowStride: need.cols * elementBytes, colStride: elementBytes };
}

export function dtypeOf(dtypes: readonly StoredDType[], tensor: number): StoredDType {
  const dtype = dtypes[tensor];
  if (dtype === undefined) throw new LayercastError("internal", `The push has no checkpoint tensor ${tensor}.`);
  return dtype;
}

function filled(width: number, fields: Record<number, number>): Float64Array {
  const row = new Float64Array(width);
  for (const [column, value] of Object.entries(fields)) row[Number(column)] = value;
  return row;
}

const F32_BYTES = 4;
