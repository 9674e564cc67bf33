// What a rank has of a push, by cells: which rows of each need have been cut into buffers, which rows of each matrix are
// written. Decides what can be written now. Values of rows, never counts of elements; no I/O.

import { DTYPES, type StoredDType } from "../../orchestrator/contract/dtype.js";
import type { BucketPiece } from "../../orchestrator/contract/push.js";
import {
  isTransposed,
  type Matrix,
  type Need,
  offsetOfRow,
  type RankMatrices,
  rowsGivenBy,
  rowsOfNeed,
} from "../../orchestrator/planner/matrix-needs.js";
import {
  asInCheckpoint,
  dtypeOf,
  type MatrixRows,
  type PlacedRows,
  packed,
} from "../../orchestrator/planner/push-program.js";
import {
  commonRows,
  coversRows,
  joinRows,
  moveRows,
  NO_ROWS,
  type RowRange,
  type RowRanges,
  rowCount,
  withoutRows,
} from "../../orchestrator/planner/row-ranges.js";

export interface Cells {
  readonly matrices: RankMatrices;
  /** By checkpoint tensor: as planned, until a bucket brings rows of it in another. */
  readonly dtypes: StoredDType[];
  readonly shapes: readonly (readonly number[])[];
  /** By matrix. */
  readonly states: MatrixCells[];
  /** By layer: matrices of it that are not written whole yet, those that wait for finalize left out. */
  readonly unwritten: number[];
  /** Matrices by the path that they took. */
  readonly paths: Record<MatrixPath, number>;
  /** Bytes in buffers by module, those that wait for finalize left out: they hold on to theirs whatever the order. */
  readonly heldByModule: Map<string, number>;
  /** Memory of buffers that tensors which wait for finalize hold, in whole pages: it does not count against max_buffer_bytes. */
  finalizeBytes: number;
  /** Bytes of buffers: each need has a place of its own, whether or not anything is there. */
  readonly bufferBytes: number;
}

export interface MatrixCells {
  /** Rows of the matrix. */
  written: RowRanges;
  /** By need: its rows that lie in buffers. */
  held: RowRanges[];
  /** By need: where its first row lies in buffers. */
  places: number[];
  path: MatrixPath | null;
}

/** Something of it went through buffers; else it came from one bucket, or piece by piece. */
export type MatrixPath = "whole" | "streamed" | "buffered";

/** Matrices begin where pages do, so that a page is never of two. */
const PAGE_BYTES = 4096;

export function newCells(
  matrices: RankMatrices,
  planned: readonly StoredDType[],
  shapes: readonly (readonly number[])[],
): Cells {
  const dtypes = [...planned];
  let end = 0;
  const states = matrices.matrices.map(({ needs }): MatrixCells => {
    end = Math.ceil(end / PAGE_BYTES) * PAGE_BYTES;
    const places = needs.map((need) => {
      // Values may come in a larger dtype than planned. What is not used takes addresses, no memory.
      const { bytes: elementBytes } = DTYPES[dtypeOf(dtypes, need.tensor) === "F8_E4M3" ? "F8_E4M3" : "F32"];
      end = Math.ceil(end / elementBytes) * elementBytes;
      const place = end;
      end += need.rows * need.cols * elementBytes;
      return place;
    });
    return { written: NO_ROWS, held: needs.map(() => NO_ROWS), places, path: null };
  });
  const unwritten: number[] = [];
  for (const { layer, phase } of matrices.matrices) {
    unwritten[layer] = (unwritten[layer] ?? 0) + (phase === "layer" ? 1 : 0);
  }
  const bufferBytes = Math.max(end, PAGE_BYTES);
  const paths = { whole: 0, streamed: 0, buffered: 0 };
  return { matrices, dtypes, shapes, states, unwritten, paths, heldByModule: new Map(), finalizeBytes: 0, bufferBytes };
}

/** Rows of a need that a bucket brings, and where they are in it. */
export interface Arrival extends RowRange {
  need: number;
  /** Of row `from`, bytes from the start of the bucket's file. */
  offset: number;
}

/** Tensors that the bucket brings in another dtype than planned. All rows of one come in the same, which the session sees to. */
export function noteDTypes({ dtypes }: Cells, pieces: readonly BucketPiece[]): void {
  for (const { tensor, dtype } of pieces) if (dtype !== undefined) dtypes[tensor] = dtype;
}

/** By matrix: what the bucket brings of it that has not come before. */
export function arrivalsOf(cells: Cells, pieces: readonly BucketPiece[]): Map<number, Arrival[]> {
  const arrivals = new Map<number, Arrival[]>();
  for (const piece of pieces) {
    const shape = cells.shapes[piece.tensor] ?? [];
    for (const { matrix, need } of cells.matrices.byTensor.get(piece.tensor) ?? []) {
      const of = matrixAt(cells, matrix).needs[need];
      const given = of === undefined ? null : rowsGivenBy(of, shape, piece.firstRow, piece.firstRow + piece.rows);
      if (of === undefined || given === null) continue;
      const elementBytes = DTYPES[dtypeOf(cells.dtypes, piece.tensor)].bytes;
      for (const rows of withoutRows([given], received(cells, matrix, need))) {
        const offset = offsetOfRow(of, rows.from, { shape, ...piece, elementBytes });
        const known = arrivals.get(matrix);
        if (known === undefined) arrivals.set(matrix, [{ need, ...rows, offset }]);
        else known.push({ need, ...rows, offset });
      }
    }
  }
  return arrivals;
}

/** Rows of a need that are in buffers, or in what is written already. */
function received(cells: Cells, matrix: number, need: number): RowRanges {
  const state = stateAt(cells, matrix);
  const of = matrixAt(cells, matrix).needs[need];
  if (of === undefined) return NO_ROWS;
  const held = state.held[need] ?? NO_ROWS;
  if (of.kind === "rows") return joinRows(held, moveRows(commonRows(state.written, [rowsOfNeed(of)]), -of.toRow));
  return isDone(cells, matrix) ? [{ from: 0, to: of.rows }] : held;
}

/** Rows of the matrix that can be written now, with what is there and what arrives. */
export function writableRows(cells: Cells, index: number, arrivals: readonly Arrival[]): RowRanges {
  const matrix = matrixAt(cells, index);
  const state = stateAt(cells, index);
  const there = (need: number) =>
    joinRows(received(cells, index, need), arrivals.filter((one) => one.need === need).map(onlyRows));
  // Of scales, and of what must agree, all must be in one place.
  const isTogether = (need: number, all: RowRange) =>
    coversRows(received(cells, index, need), all) ||
    arrivals.some((one) => one.need === need && coversRows([one], all));
  // What the checkpoint does not give is there from the start.
  let available: RowRanges = matrix.unfilled;
  for (const [need, of] of matrix.needs.entries()) {
    if (of.kind === "rows") available = joinRows(available, moveRows(there(need), of.toRow));
    else if (!isTogether(need, { from: 0, to: of.rows })) return NO_ROWS;
  }
  return withoutRows(
    available.flatMap((range) => aligned(matrix, range)),
    state.written,
  );
}

/** The part of a range that can be written by itself. */
function aligned({ rows, rowsTogether }: Matrix, { from, to }: RowRange): RowRange[] {
  if (rowsTogether === "all") return from === 0 && to === rows ? [{ from, to }] : [];
  const first = Math.ceil(from / rowsTogether) * rowsTogether;
  const last = to === rows ? to : Math.floor(to / rowsTogether) * rowsTogether;
  return first < last ? [{ from: first, to: last }] : [];
}

/** The bucket's and the buffers' place in a program's files. */
export interface FileNumbers {
  bucket: number;
  buffers: number;
}

/** Rows of the matrix with where each of them is. */
export function placeRows(
  cells: Cells,
  index: number,
  range: RowRange,
  arrivals: readonly Arrival[],
  files: FileNumbers,
): MatrixRows {
  const matrix = matrixAt(cells, index);
  const placed = matrix.needs.map((need, at) => {
    const all = { from: 0, to: need.rows };
    const wanted = need.kind === "rows" ? moveRows(commonRows([range], [rowsOfNeed(need)]), -need.toRow) : [all];
    const held = heldRows(cells, index, at, wanted, files.buffers);
    if (need.kind !== "rows" && coversRows(held, all)) return held;
    const arriving = arrivingRows(cells, need, at, wanted, arrivals, files.bucket);
    return need.kind === "rows" ? [...held, ...arriving].sort((a, b) => a.from - b.from) : arriving;
  });
  return { matrix, ...range, placed };
}

function heldRows(cells: Cells, index: number, at: number, wanted: RowRanges, file: number): PlacedRows[] {
  const state = stateAt(cells, index);
  const need = matrixAt(cells, index).needs[at];
  if (need === undefined) return [];
  const strides = packed(need, DTYPES[dtypeOf(cells.dtypes, need.tensor)].bytes);
  const place = state.places[at] ?? 0;
  return commonRows(state.held[at] ?? NO_ROWS, wanted).map((rows) => ({
    ...rows,
    ...strides,
    file,
    offset: place + rows.from * strides.rowStride,
  }));
}

function arrivingRows(
  { dtypes }: Cells,
  need: Need,
  at: number,
  wanted: RowRanges,
  arrivals: readonly Arrival[],
  file: number,
): PlacedRows[] {
  const strides = asInCheckpoint(need, DTYPES[dtypeOf(dtypes, need.tensor)].bytes);
  return arrivals
    .filter((arrival) => arrival.need === at)
    .flatMap((arrival) =>
      commonRows([arrival], wanted).map((rows) => ({
        ...rows,
        ...strides,
        file,
        offset: arrival.offset + (rows.from - arrival.from) * strides.rowStride,
      })),
    );
}

/** What is cut out of a bucket into buffers; rows of a table that the core takes. */
export interface Copy {
  offset: number;
  rowStride: number;
  rows: number;
  rowBytes: number;
  toOffset: number;
}

/** Where an arrival is to be cut to. */
export function copyOf(cells: Cells, index: number, arrival: Arrival): Copy {
  const need = matrixAt(cells, index).needs[arrival.need];
  const place = stateAt(cells, index).places[arrival.need] ?? 0;
  if (need === undefined) throw new RangeError(`matrix ${index} has no need ${arrival.need}`);
  const elementBytes = DTYPES[dtypeOf(cells.dtypes, need.tensor)].bytes;
  const source = asInCheckpoint(need, elementBytes);
  const to = packed(need, elementBytes);
  const rows = arrival.to - arrival.from;
  const toOffset = place + arrival.from * to.rowStride;
  if (isTransposed(need)) {
    return {
      offset: arrival.offset,
      rowStride: source.colStride,
      rows: need.cols,
      rowBytes: rows * elementBytes,
      toOffset,
    };
  }
  return { offset: arrival.offset, rowStride: source.rowStride, rows, rowBytes: to.rowStride, toOffset };
}

/** These rows of the matrix, which a bucket made writable, are written. */
export function noteStreamed(cells: Cells, index: number, { from, to }: RowRange): void {
  const isWhole = from === 0 && to === matrixAt(cells, index).rows;
  notePath(cells, stateAt(cells, index), isWhole ? "whole" : "streamed");
  noteWritten(cells, index, { from, to });
}

/** These rows of the matrix are written: what buffers had of them is not needed any more. */
export function noteWritten(cells: Cells, index: number, range: RowRange): void {
  const matrix = matrixAt(cells, index);
  const state = stateAt(cells, index);
  const [heldBefore, wasDone] = [heldBytes(cells, index), isDone(cells, index)];
  state.written = joinRows(state.written, [range]);
  const done = isDone(cells, index);
  state.held = matrix.needs.map((need, at) => {
    if (done) return NO_ROWS;
    const held = state.held[at] ?? NO_ROWS;
    return need.kind === "rows" ? withoutRows(held, moveRows([range], -need.toRow)) : held;
  });
  countHeld(cells, matrix, heldBytes(cells, index) - heldBefore);
  if (done && !wasDone && matrix.phase === "layer")
    cells.unwritten[matrix.layer] = (cells.unwritten[matrix.layer] ?? 0) - 1;
}

function countHeld({ heldByModule }: Cells, { module, phase }: Matrix, bytes: number): void {
  if (phase === "finalize") return;
  const held = (heldByModule.get(module) ?? 0) + bytes;
  if (held > 0) heldByModule.set(module, held);
  else heldByModule.delete(module);
}

/** The arrival lies in buffers. */
export function noteHeld(cells: Cells, index: number, arrival: Arrival): void {
  const { need, from, to } = arrival;
  const state = stateAt(cells, index);
  if (matrixAt(cells, index).phase === "finalize") cells.finalizeBytes += neededBytes(cells, index, arrival);
  const before = heldBytes(cells, index);
  state.held[need] = joinRows(state.held[need] ?? NO_ROWS, [{ from, to }]);
  notePath(cells, state, "buffered");
  countHeld(cells, matrixAt(cells, index), heldBytes(cells, index) - before);
}

/** The path that counts for all of the matrix: through buffers if anything went there, else that of its first rows. */
function notePath({ paths }: Cells, state: MatrixCells, path: MatrixPath): void {
  if (state.path === path || (state.path !== null && path !== "buffered")) return;
  if (state.path !== null) paths[state.path] -= 1;
  state.path = path;
  paths[path] += 1;
}

/** The buffers' range that is the matrix's own; whole pages. */
export function bufferSpan(cells: Cells, index: number): { offset: number; bytes: number } {
  const matrix = matrixAt(cells, index);
  const { places } = stateAt(cells, index);
  const last = matrix.needs.at(-1);
  const end = last === undefined ? 0 : (places.at(-1) ?? 0) + bytesOf(cells, last, last.rows);
  const offset = places[0] ?? 0;
  return { offset, bytes: Math.ceil((end - offset) / PAGE_BYTES) * PAGE_BYTES };
}

/** What is still to come of a need. */
export function missingRows(cells: Cells, index: number, need: number): RowRanges {
  const of = matrixAt(cells, index).needs[need];
  return of === undefined ? NO_ROWS : withoutRows([{ from: 0, to: of.rows }], received(cells, index, need));
}

/** Whether anything of the matrix has come. */
export function isTouched(cells: Cells, index: number): boolean {
  const { written, held } = stateAt(cells, index);
  return written.length > 0 || held.some((rows) => rows.length > 0);
}

export function isDone(cells: Cells, index: number): boolean {
  return coversRows(stateAt(cells, index).written, { from: 0, to: matrixAt(cells, index).rows });
}

/** Bytes of the matrix that lie in buffers. */
export function heldBytes(cells: Cells, index: number): number {
  const { held } = stateAt(cells, index);
  return matrixAt(cells, index).needs.reduce(
    (sum, need, at) => sum + bytesOf(cells, need, rowCount(held[at] ?? NO_ROWS)),
    0,
  );
}

/** Memory that an arrival takes in buffers: whole pages. */
export function neededBytes(cells: Cells, index: number, { need, from, to }: Arrival): number {
  const of = matrixAt(cells, index).needs[need];
  return of === undefined ? 0 : Math.ceil(bytesOf(cells, of, to - from) / PAGE_BYTES) * PAGE_BYTES;
}

export function bytesOf({ dtypes }: Pick<Cells, "dtypes">, { tensor, cols }: Need, rows: number): number {
  return rows * cols * DTYPES[dtypeOf(dtypes, tensor)].bytes;
}

export function matrixAt({ matrices }: Cells, index: number): Matrix {
  const matrix = matrices.matrices[index];
  if (matrix === undefined) throw new RangeError(`a rank has no matrix ${index}`);
  return matrix;
}

function stateAt({ states }: Cells, index: number): MatrixCells {
  const state = states[index];
  if (state === undefined) throw new RangeError(`a rank has no matrix ${index}`);
  return state;
}

const onlyRows = ({ from, to }: RowRange): RowRange => ({ from, to });
