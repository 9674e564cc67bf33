// What a bucket brings of a rank's matrices: which rows of which windows, which rows of the matrices can be written with them, and
// where each of those rows lies, in the bucket or in buffers. No I/O.

import { DTYPES, elementCount } from "../../orchestrator/contract/dtype.js";
import type { BucketPiece } from "../../orchestrator/contract/push.js";
import { dtypeOf, type Piece } from "../../orchestrator/program/make-program.js";
import { firstOf, isTransposed, tensorOf } from "../../orchestrator/program/rank-geometry.js";
import { forEachUse, rowsGivenBy } from "../../orchestrator/program/rank-matrices.js";
import {
  commonRows,
  coversRows,
  joinRows,
  moveRows,
  NO_ROWS,
  type RowRange,
  type RowRanges,
  withoutRows,
} from "../../orchestrator/program/row-ranges.js";
import { bufferPlace, packed } from "../intake/buffer-places.js";
import {
  type Cells,
  type CellWrite,
  elementBytesOf,
  heldRows,
  matrixAt,
  received,
  windowAt,
  writtenRows,
} from "../intake/cells.js";

/** Rows of a window that a bucket brings, and where they are in it. */
export interface Arrival extends RowRange {
  window: number;
  /** Of row `from`, bytes from the start of the bucket's file. */
  offset: number;
}

/** By matrix: what the bucket brings of it that has not come before. */
export function arrivalsOf(cells: Cells, pieces: readonly BucketPiece[]): Map<number, Arrival[]> {
  const arrivals = new Map<number, Arrival[]>();
  for (const piece of pieces) {
    const rowElements = elementCount((cells.shapes[piece.tensor] ?? []).slice(1));
    forEachUse(cells.matrices, piece.tensor, (index, window) => {
      const arriving = arrivingRows(cells, index, window, piece, rowElements);
      const known = arrivals.get(index);
      if (known !== undefined) known.push(...arriving);
      else if (arriving.length > 0) arrivals.set(index, arriving);
    });
  }
  return arrivals;
}

/** `rowElements`: elements of a row of the piece's tensor. */
function arrivingRows(
  cells: Cells,
  index: number,
  at: number,
  { tensor, firstRow, rows, offset }: BucketPiece,
  rowElements: number,
): Arrival[] {
  const { geometry, matrix } = matrixAt(cells, index);
  const window = geometry.windows[at];
  if (window === undefined) return [];
  const first = firstOf(window, matrix);
  const given = rowsGivenBy(window, first, rowElements, { from: firstRow, to: firstRow + rows });
  if (given === null) return [];
  const elementBytes = DTYPES[dtypeOf(cells.dtypes, tensor)].bytes;
  return withoutRows([given], received(cells, index, at)).map(({ from, to }) => {
    const elements = first + from * window.rowStride - firstRow * rowElements;
    return { window: at, from, to, offset: offset + elements * elementBytes };
  });
}

/** Rows of the matrix that can be written now, with what is there and what arrives. */
export function writableRows(cells: Cells, index: number, arrivals: readonly Arrival[]): RowRanges {
  const { geometry } = matrixAt(cells, index);
  // What the checkpoint does not give is there from the start.
  let available = geometry.unfilled;
  for (const [at, { kind, rows, toRow }] of geometry.windows.entries()) {
    const there = received(cells, index, at);
    if (kind === "rows") available = joinRows(available, moveRows(withArriving(there, at, arrivals), toRow));
    else if (!isTogether(there, at, arrivals, { from: 0, to: rows })) return NO_ROWS;
  }
  return withoutRows(
    available.flatMap((range) => aligned(geometry, range)),
    writtenRows(cells, index),
  );
}

function withArriving(there: RowRanges, window: number, arrivals: readonly Arrival[]): RowRanges {
  let all = there;
  for (const arrival of arrivals)
    if (arrival.window === window) all = joinRows(all, [{ from: arrival.from, to: arrival.to }]);
  return all;
}

/** Of scales, and of what must agree, all must be in one place. */
function isTogether(there: RowRanges, window: number, arrivals: readonly Arrival[], all: RowRange): boolean {
  return coversRows(there, all) || arrivals.some((arrival) => arrival.window === window && coversRows([arrival], all));
}

/** The part of a range that can be written by itself. */
function aligned(
  { rows, rowsTogether }: { rows: number; rowsTogether: number | "all" },
  { from, to }: RowRange,
): RowRange[] {
  if (rowsTogether === "all") return from === 0 && to === rows ? [{ from, to }] : [];
  const first = Math.ceil(from / rowsTogether) * rowsTogether;
  const last = to === rows ? to : Math.floor(to / rowsTogether) * rowsTogether;
  return first < last ? [{ from: first, to: last }] : [];
}

/** Rows of a matrix that are written out of a bucket and buffers. */
export interface BucketWrite extends CellWrite {
  arrivals: readonly Arrival[];
}

export function bucketWrite(
  cells: Cells,
  index: number,
  { from, to }: RowRange,
  arrivals: readonly Arrival[],
): BucketWrite {
  const { geometry, matrix } = matrixAt(cells, index);
  return { geometry, matrix, from, to, index, arrivals }; // spread, it would take three times as long to read
}

/** The bucket's and the buffers' place in a program's files. */
export const FILES = { bucket: 0, buffers: 1 } as const;

/** Where rows [from, to) of a window are: pieces of buffers and of the bucket, in order. */
export function findInBucket(cells: Cells, write: BucketWrite, at: number, from: number, to: number): Piece[] {
  const { geometry, matrix, index, arrivals } = write;
  const window = geometry.windows[at];
  if (window === undefined) return [];
  const elementBytes = DTYPES[dtypeOf(cells.dtypes, tensorOf(window, matrix))].bytes;
  let pieces = piecesInBuffers(cells, index, at, elementBytes, { from, to });
  const rowStride = window.rowStride * elementBytes;
  const colStride = window.colStride * elementBytes;
  for (const arrival of arrivals) {
    const first = Math.max(from, arrival.from);
    const end = Math.min(to, arrival.to);
    if (arrival.window !== at || first >= end) continue;
    const offset = arrival.offset + (first - arrival.from) * rowStride;
    const piece = { from: first, to: end, file: FILES.bucket, offset, rowStride, colStride };
    if (pieces.length > 0) pieces.push(piece);
    else pieces = [piece]; // nearly always the only one: no array with room for more
  }
  if (pieces.length < 2) return pieces;
  if (window.kind !== "rows") return pieces.filter((piece) => piece.from === from && piece.to === to).slice(0, 1);
  return pieces.sort((a, b) => a.from - b.from);
}

const NO_PIECES: Piece[] = [];

function piecesInBuffers(cells: Cells, index: number, at: number, elementBytes: number, wanted: RowRange): Piece[] {
  const held = heldRows(cells, index, at);
  if (held.length === 0) return NO_PIECES;
  const place = bufferPlace(cells, index, at);
  const strides = packed(windowAt(cells, index, at), elementBytes);
  return commonRows(held, [wanted]).map((rows) => ({
    ...rows,
    ...strides,
    file: FILES.buffers,
    offset: place + rows.from * strides.rowStride,
  }));
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
export function copyOf(cells: Cells, index: number, { window, from, to, offset }: Arrival): Copy {
  const of = windowAt(cells, index, window);
  const elementBytes = elementBytesOf(cells, index, window);
  const { rowStride: rowBytes } = packed(of, elementBytes);
  const rows = to - from;
  const toOffset = bufferPlace(cells, index, window) + from * rowBytes;
  if (isTransposed(of)) {
    const rowStride = of.colStride * elementBytes;
    return { offset, rowStride, rows: of.cols, rowBytes: rows * elementBytes, toOffset };
  }
  return { offset, rowStride: of.rowStride * elementBytes, rows, rowBytes, toOffset };
}
