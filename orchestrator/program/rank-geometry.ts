// Works out what of a rank's arena follows from the layout alone: which elements of which checkpoint tensors the rank reads, and
// where in its arena they land. It is kept by kernel tensor, not by matrix: the matrices of one kernel tensor (its experts) differ
// only in the checkpoint tensor, the first element in it, and the place in the arena.

import { DERIVED_FIELDS, type Span } from "../../native/native.js";
import { DTYPES } from "../contract/dtype.js";
import { LayercastError } from "../contract/errors.js";
import type { ArenaLayout, ArenaTensor, KernelTensor, Layout, Part, PartScales, PlanLayer } from "../contract/plan.js";
import { SCHEMES } from "../contract/recipe.js";
import { type Cut, cutPart } from "./cut-part.js";
import { matricesOf } from "./expert-placement.js";
import { moduleOf } from "./modules.js";
import { type DERIVED, OP, WIDTHS } from "./program-tables.js";
import { type RowRange, type RowRanges, withoutRows } from "./row-ranges.js";

/**
 * A window of a checkpoint tensor that a rank cuts out, in elements of it; the same for each matrix but for tensor and first
 * element. `rows` fill rows of the matrix, an `agreement` is one value that must equal the first window's, `scales` are those of
 * the codes of another window.
 */
export interface Window {
  kind: "rows" | "agreement" | "scales";
  /** By matrix of the rank: index into Layout.checkpointTensors. */
  tensors: readonly number[];
  /** By matrix of the rank: where the part begins in its tensor. */
  firsts: readonly number[];
  /** From there to the window's first element. */
  shift: number;
  rows: number;
  cols: number;
  rowStride: number;
  colStride: number;
  /** First row of the matrix that it fills. */
  toRow: number;
  /** For codes: which of the kernel tensor's windows has their scales, and how they lie in it; null: these are values. */
  scaledBy: ScaledBy | null;
}

export interface ScaledBy {
  window: number;
  blockRows: number;
  blockCols: number;
  firstRow: number;
  firstCol: number;
}

/** A kernel tensor as one rank holds it: `count` matrices, each an op of a program. */
export interface KernelGeometry {
  kernel: KernelTensor;
  /** Index into Layout.layers. */
  layer: number;
  module: string;
  count: number;
  rows: number;
  cols: number;
  /** An op that writes the first matrix whole, without its slices; a row of a program's ops. */
  op: Float64Array;
  /** Of one matrix, in the arena; the next one's follow. */
  outBytes: number;
  scaleBytes: number;
  /** Rows that no window fills: they are zero, or the constant. */
  unfilled: RowRanges;
  /** A matrix can be written in so many rows at a time, counted from the first; "all": only whole. */
  rowsTogether: number | "all";
  windows: readonly Window[];
  /** Its tensors in the arena, scales included. */
  spans: readonly Span[];
}

/** What is made of a matrix that is finished. */
export interface DerivedGeometry {
  kernel: KernelTensor;
  /** A row of a program's `derived`. */
  row: Float64Array;
  spans: readonly Span[];
}

/** A layer of one rank and phase. */
export interface Geometry {
  kernels: readonly KernelGeometry[];
  derived: readonly DerivedGeometry[];
}

/** Kernel tensor or scale name -> its place in the arena. */
export type Places = ReadonlyMap<string, ArenaTensor>;

export function placesOf(arena: ArenaLayout): Places {
  return new Map(arena.tensors.map((tensor) => [tensor.name, tensor]));
}

export function layerGeometry(
  layout: Layout,
  places: Places,
  layer: number,
  { rank, phase }: { rank: number; phase: KernelTensor["phase"] },
): Geometry {
  const ranks = layout.tensorParallelSize;
  const planLayer = layout.layers[layer];
  if (planLayer === undefined || !(rank >= 0 && rank < ranks))
    throw new LayercastError("internal", `The plan has no layer ${layer} for rank ${rank} of ${ranks}.`);
  const kernels = planLayer.kernelTensors.filter((kernel) => kernel.phase === phase);
  const isDerived = (kernel: KernelTensor) => kernel.derived !== null;
  return {
    kernels: kernels
      .filter((kernel) => !isDerived(kernel))
      .map((kernel) => kernelGeometry(kernel, layer, places, rank, ranks)),
    derived: kernels.filter(isDerived).map((kernel) => derivedGeometry(kernel, planLayer, places)),
  };
}

function kernelGeometry(
  kernel: KernelTensor,
  layer: number,
  places: Places,
  rank: number,
  ranks: number,
): KernelGeometry {
  const { name, rows, cols, scheme, mustAgree, mustBePositive } = kernel;
  const held = matricesOf(kernel, rank, ranks);
  const cuts = kernel.parts.map((part) => cutPart(part, rank, ranks));
  const windows = windowsOf(kernel, cuts, held);
  const out = placeOf(places, name);
  const scale = kernel.scale === null ? null : placeOf(places, kernel.scale.name);
  const filled = windows.filter(({ kind }) => kind === "rows").map(rowsOfWindow);
  return {
    kernel,
    layer,
    module: moduleOf(name),
    count: held.count,
    rows,
    cols,
    op: wholeOp(kernel, cuts, out, scale),
    outBytes: held.count === 0 ? 0 : out.bytes / held.count,
    scaleBytes: held.count === 0 ? 0 : (scale?.bytes ?? 0) / held.count,
    unfilled: withoutRows([{ from: 0, to: rows }], filled),
    rowsTogether: mustAgree || mustBePositive ? "all" : SCHEMES[scheme].rowsTogether,
    windows,
    spans: spansOf(kernel, places),
  };
}

function wholeOp(
  kernel: KernelTensor,
  cuts: readonly Cut[],
  out: ArenaTensor,
  scale: ArenaTensor | null,
): Float64Array {
  const op = new Float64Array(WIDTHS.ops); // field by field: of a large plan there are some 30,000
  op[OP.scheme] = SCHEMES[kernel.scheme].code;
  op[OP.outDtype] = DTYPES[kernel.dtype].code;
  op[OP.roundDtype] = kernel.roundTo === null ? -1 : DTYPES[kernel.roundTo].code;
  op[OP.rows] = kernel.rows;
  op[OP.cols] = kernel.cols;
  op[OP.outOffset] = out.offset;
  op[OP.scaleOffset] = scale?.offset ?? -1;
  op[OP.zeroRows] = cuts.reduce((sum, cut) => sum + cut.zeroRows, 0);
  op[OP.zeroCols] = cuts[0]?.zeroCols ?? 0;
  op[OP.constant] = kernel.constant ?? Number.NaN;
  op[OP.mustBePositive] = kernel.mustBePositive ? 1 : 0;
  return op;
}

/** The matrices of a kernel tensor that the rank holds: `count` of them from `first`. */
type Held = ReturnType<typeof matricesOf>;

/** The rank's cut of each part, stacked; parts that must agree are one beside the other. Their scales stand behind them. */
function windowsOf({ parts, mustAgree }: KernelTensor, cuts: readonly Cut[], held: Held): Window[] {
  const taken = parts.flatMap((part, index) => {
    const cut = cuts[index];
    return cut === undefined || cut.rows === 0 ? [] : [{ part, cut }];
  });
  const windows: Window[] = [];
  const scales: Window[] = [];
  let toRow = 0;
  for (const { part, cut } of taken) {
    const window: Window = {
      kind: mustAgree && windows.length > 0 ? "agreement" : "rows",
      ...ofHeld(part, held),
      shift: cut.row * part.rowStride + cut.col * part.colStride,
      rows: cut.rows,
      cols: cut.cols,
      rowStride: part.rowStride,
      colStride: part.colStride,
      toRow,
      scaledBy: part.scales === null ? null : scaledBy(part.scales, cut, taken.length + scales.length),
    };
    if (part.scales !== null && window.scaledBy !== null)
      scales.push(scaleWindow(part.scales, window.scaledBy, cut, held));
    windows.push(window);
    if (!mustAgree) toRow += cut.rows + cut.zeroRows;
  }
  return [...windows, ...scales];
}

function ofHeld({ tensors, firsts }: Pick<Part, "tensors" | "firsts">, { first, count }: Held) {
  if (count === tensors.length) return { tensors, firsts }; // as the layout has them: no copy for each rank
  return { tensors: tensors.slice(first, first + count), firsts: firsts.slice(first, first + count) };
}

function scaledBy({ blockRows, blockCols, row, col }: PartScales, cut: Cut, window: number): ScaledBy {
  return { window, blockRows, blockCols, firstRow: row + cut.row, firstCol: col + cut.col };
}

/** The whole rows of scales that the codes of a window have, from the first of the matrix of scales on. */
function scaleWindow(scales: PartScales, by: ScaledBy, cut: Cut, held: Held): Window {
  return {
    kind: "scales",
    ...ofHeld(scales, held),
    shift: 0,
    rows: Math.floor((by.firstRow + cut.rows - 1) / by.blockRows) + 1,
    cols: Math.floor((by.firstCol + cut.cols - 1) / by.blockCols) + 1,
    rowStride: scales.rowStride,
    colStride: 1,
    toRow: 0,
    scaledBy: null,
  };
}

/** Rows of the matrix that the window fills. */
export function rowsOfWindow({ toRow, rows }: Pick<Window, "toRow" | "rows">): RowRange {
  return { from: toRow, to: toRow + rows };
}

/** Columns of it lie together in the checkpoint tensor, instead of rows. */
export function isTransposed({ cols, colStride }: Pick<Window, "cols" | "colStride">): boolean {
  return cols > 1 && colStride !== 1;
}

/** Index into Layout.checkpointTensors of the tensor that the window is of, for a matrix of the rank. */
export function tensorOf({ tensors }: Pick<Window, "tensors">, matrix: number): number {
  return tensors[matrix] ?? -1;
}

/** The window's first element in that tensor. */
export function firstOf({ firsts, shift }: Pick<Window, "firsts" | "shift">, matrix: number): number {
  return (firsts[matrix] ?? 0) + shift;
}

function derivedGeometry(kernel: KernelTensor, layer: PlanLayer, places: Places): DerivedGeometry {
  const { name, dtype, rows, cols, derived } = kernel;
  const weight = layer.kernelTensors.find((one) => one.name === derived?.from);
  if (derived === null || weight === undefined)
    throw new LayercastError("internal", `${layer.name} has no kernel tensor ${derived?.from} for ${name}.`);
  const row: Record<keyof typeof DERIVED, number> = {
    scheme: SCHEMES[derived.scheme].code,
    weightOffset: placeOf(places, derived.from).offset,
    weightDtype: DTYPES[weight.dtype].code,
    scaleOffset: derived.scale === null ? -1 : placeOf(places, derived.scale).offset,
    outOffset: placeOf(places, name).offset,
    outDtype: DTYPES[dtype].code,
    heads: derived.heads,
    headRows: derived.headRows,
    firstRow: derived.firstRow,
    rows,
    cols,
    transposed: derived.transposed ? 1 : 0,
  };
  return { kernel, row: Float64Array.from(DERIVED_FIELDS, (field) => row[field]), spans: spansOf(kernel, places) };
}

/** The kernel tensor's place in the arena, with that of its scales. */
function spansOf({ name, scale }: KernelTensor, places: Places): Span[] {
  const names = scale === null ? [name] : [name, scale.name];
  return names
    .map((one) => placeOf(places, one))
    .filter(({ bytes }) => bytes > 0)
    .map(({ offset, bytes }) => ({ offset, bytes }));
}

function placeOf(places: Places, name: string): ArenaTensor {
  const place = places.get(name);
  if (place === undefined) throw new LayercastError("internal", `The arena has no place for ${name}.`);
  return place;
}
