// Which rows of a rank's matrices are written, and which rows of their windows wait in buffers. Values of rows, never counts of
// elements; no I/O. A matrix of which nothing has arrived, or all is written, takes one byte.

import { DTYPES, type StoredDType } from "../../orchestrator/contract/dtype.js";
import type { BucketPiece } from "../../orchestrator/contract/push.js";
import { dtypeOf, type Write } from "../../orchestrator/program/make-program.js";
import { type KernelGeometry, rowsOfWindow, tensorOf, type Window } from "../../orchestrator/program/rank-geometry.js";
import { type Matrix, matrixOf, type RankMatrices } from "../../orchestrator/program/rank-matrices.js";
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
} from "../../orchestrator/program/row-ranges.js";
import { type BufferPlaces, bufferPlaces, wholePages } from "./buffer-places.js";

export interface Cells {
  readonly matrices: RankMatrices;
  /** By checkpoint tensor: as planned, until a bucket brings rows of it in another. */
  readonly dtypes: StoredDType[];
  readonly shapes: readonly (readonly number[])[];
  /** By matrix: 1 when it is written whole. */
  readonly done: Uint8Array;
  /** Of matrices that are not, what has arrived. */
  readonly underWay: Map<number, MatrixCells>;
  /** By layer: matrices of it that are not written whole yet, those that wait for finalize left out. */
  readonly unwritten: number[];
  /** Matrices by the path that they took. */
  readonly paths: Record<MatrixPath, number>;
  /** Bytes in buffers by module, those that wait for finalize left out: they hold on to theirs whatever the order. */
  readonly heldByModule: Map<string, number>;
  /** Memory of buffers that tensors which wait for finalize hold, in whole pages: it does not count against max_buffer_bytes. */
  finalizeBytes: number;
  readonly buffers: BufferPlaces;
}

export interface MatrixCells {
  /** Rows of the matrix. */
  written: RowRanges;
  /** By window: its rows that lie in buffers. */
  held: RowRanges[];
  path: MatrixPath | null;
}

/** Something of it went through buffers; else it came from one bucket, or piece by piece. */
export type MatrixPath = "whole" | "streamed" | "buffered";

export function newCells(
  matrices: RankMatrices,
  planned: readonly StoredDType[],
  shapes: readonly (readonly number[])[],
): Cells {
  const unwritten: number[] = [];
  for (const { layer, kernel, count } of matrices.kernels)
    unwritten[layer] = (unwritten[layer] ?? 0) + (kernel.phase === "layer" ? count : 0);
  return {
    matrices,
    dtypes: [...planned],
    shapes,
    done: new Uint8Array(matrices.kernelOf.length),
    underWay: new Map(),
    unwritten,
    paths: { whole: 0, streamed: 0, buffered: 0 },
    heldByModule: new Map(),
    finalizeBytes: 0,
    buffers: bufferPlaces(matrices, planned),
  };
}

/** Tensors that the bucket brings in another dtype than planned. All rows of one come in the same, which the session sees to. */
export function noteDTypes({ dtypes }: Cells, pieces: readonly BucketPiece[]): void {
  for (const { tensor, dtype } of pieces) if (dtype !== undefined) dtypes[tensor] = dtype;
}

/** Rows of a window that are in buffers, or in what is written already. */
export function received(cells: Cells, index: number, window: number): RowRanges {
  const state = cells.underWay.get(index);
  if (state === undefined && !isDone(cells, index)) return NO_ROWS;
  const of = windowAt(cells, index, window);
  if (state === undefined) return [{ from: 0, to: of.rows }];
  const held = state.held[window] ?? NO_ROWS;
  if (of.kind !== "rows") return held;
  return joinRows(held, moveRows(commonRows(state.written, [rowsOfWindow(of)]), -of.toRow));
}

/** What is still to come of a window. */
export function missingRows(cells: Cells, index: number, window: number): RowRanges {
  const { rows } = windowAt(cells, index, window);
  return withoutRows([{ from: 0, to: rows }], received(cells, index, window));
}

/** Rows of the matrix that are not written. */
export function unwrittenRows(cells: Cells, index: number): RowRanges {
  if (isDone(cells, index)) return NO_ROWS;
  const { rows } = matrixAt(cells, index).geometry;
  return withoutRows([{ from: 0, to: rows }], writtenRows(cells, index));
}

/** Rows of a matrix that is not written whole. */
export function writtenRows({ underWay }: Cells, index: number): RowRanges {
  return underWay.get(index)?.written ?? NO_ROWS;
}

/** Rows of a window that lie in buffers. */
export function heldRows({ underWay }: Cells, index: number, window: number): RowRanges {
  return underWay.get(index)?.held[window] ?? NO_ROWS;
}

/** These rows of the matrix, which a delivery made writable, are written. */
export function noteStreamed(cells: Cells, index: number, { from, to }: RowRange): void {
  if (isDone(cells, index)) return;
  const { geometry } = matrixAt(cells, index);
  const isWhole = from === 0 && to === geometry.rows;
  if (isWhole && !cells.underWay.has(index)) {
    cells.paths.whole += 1; // as nearly all are: no state is made for it
    noteDone(cells, index, geometry);
    return;
  }
  notePath(cells, stateOf(cells, index), isWhole ? "whole" : "streamed");
  noteWritten(cells, index, { from, to });
}

/** These rows of the matrix are written: what buffers had of them is not needed any more. */
export function noteWritten(cells: Cells, index: number, range: RowRange): void {
  if (isDone(cells, index)) return;
  const { geometry } = matrixAt(cells, index);
  const state = stateOf(cells, index);
  const heldBefore = heldBytes(cells, index);
  state.written = joinRows(state.written, [range]);
  if (coversRows(state.written, { from: 0, to: geometry.rows })) {
    cells.underWay.delete(index);
    noteDone(cells, index, geometry);
  } else {
    state.held = geometry.windows.map((window, at) => {
      const held = state.held[at] ?? NO_ROWS;
      return window.kind === "rows" ? withoutRows(held, moveRows([range], -window.toRow)) : held;
    });
  }
  countHeld(cells, index, heldBytes(cells, index) - heldBefore);
}

function noteDone({ done, unwritten }: Cells, index: number, { kernel, layer }: KernelGeometry): void {
  done[index] = 1;
  if (kernel.phase === "layer") unwritten[layer] = (unwritten[layer] ?? 0) - 1;
}

/** Rows [from, to) of the window lie in buffers. */
export function noteHeld(cells: Cells, index: number, window: number, { from, to }: RowRange): void {
  const { geometry } = matrixAt(cells, index);
  if (geometry.kernel.phase === "finalize") cells.finalizeBytes += neededBytes(cells, index, window, { from, to });
  const state = stateOf(cells, index);
  const before = heldBytes(cells, index);
  state.held[window] = joinRows(state.held[window] ?? NO_ROWS, [{ from, to }]);
  notePath(cells, state, "buffered");
  countHeld(cells, index, heldBytes(cells, index) - before);
}

function countHeld(cells: Cells, index: number, bytes: number): void {
  const { heldByModule } = cells;
  const { module, kernel } = matrixAt(cells, index).geometry;
  if (kernel.phase === "finalize") return;
  const held = (heldByModule.get(module) ?? 0) + bytes;
  if (held > 0) heldByModule.set(module, held);
  else heldByModule.delete(module);
}

/** The path that counts for all of the matrix: through buffers if anything went there, else that of its first rows. */
function notePath({ paths }: Cells, state: MatrixCells, path: MatrixPath): void {
  if (state.path === path || (state.path !== null && path !== "buffered")) return;
  if (state.path !== null) paths[state.path] -= 1;
  state.path = path;
  paths[path] += 1;
}

/** Whether anything of the matrix has come. */
export function isTouched({ done, underWay }: Cells, index: number): boolean {
  return done[index] === 1 || underWay.has(index);
}

export function isDone({ done }: Cells, index: number): boolean {
  return done[index] === 1;
}

/** Bytes of the matrix that lie in buffers. */
export function heldBytes(cells: Cells, index: number): number {
  const held = cells.underWay.get(index)?.held ?? [];
  return held.reduce((sum, rows, window) => sum + bytesOf(cells, index, window, rowCount(rows)), 0);
}

/** Memory that rows of a window take in buffers: whole pages. */
export function neededBytes(cells: Cells, index: number, window: number, { from, to }: RowRange): number {
  return wholePages(bytesOf(cells, index, window, to - from));
}

function bytesOf(cells: Cells, index: number, window: number, rows: number): number {
  return rows * windowAt(cells, index, window).cols * elementBytesOf(cells, index, window);
}

/** Of a window's elements as they arrive. */
export function elementBytesOf(cells: Cells, index: number, window: number): number {
  const tensor = tensorOf(windowAt(cells, index, window), matrixAt(cells, index).matrix);
  return DTYPES[dtypeOf(cells.dtypes, tensor)].bytes;
}

export function matrixAt({ matrices }: Pick<Cells, "matrices">, index: number): Matrix {
  return matrixOf(matrices, index);
}

export function windowAt(cells: Cells, index: number, window: number): Window {
  const found = matrixAt(cells, index).geometry.windows[window];
  if (found === undefined) throw new RangeError(`matrix ${index} has no window ${window}`);
  return found;
}

function stateOf({ underWay }: Cells, index: number): MatrixCells {
  const known = underWay.get(index);
  if (known !== undefined) return known;
  const state: MatrixCells = { written: NO_ROWS, held: [], path: null };
  underWay.set(index, state);
  return state;
}

/** Rows of a matrix that staging lacks and that are written now. */
export interface CellWrite extends Write {
  index: number;
}

export function cellWrite(cells: Cells, index: number, { from, to }: RowRange): CellWrite {
  const { geometry, matrix } = matrixAt(cells, index);
  return { geometry, matrix, from, to, index };
}
