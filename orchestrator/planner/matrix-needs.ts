// What of the checkpoint a rank needs for each matrix that it writes, when tensors come in any order and in parts: a list of
// cells (checkpoint tensor, part, expert, rows). Follows from the layout alone, so it is worked out once and serves every push.

import { elementCount } from "../contract/dtype.js";
import type { ArenaLayout, KernelTensor, Layout } from "../contract/plan.js";
import { SCHEMES } from "../contract/recipe.js";
import { matricesOf } from "./expert-placement.js";
import { type Geometry, layerGeometry, type Places, placesOf } from "./layer-geometry.js";
import { moduleOf } from "./modules.js";
import { OP, SCALE, SLICE, WIDTHS } from "./program-tables.js";
import { type RowRange, type RowRanges, withoutRows } from "./row-ranges.js";

/** `rows`: rows of the matrix. `scales`: of the codes of other needs. `agreement`: a value that must equal the first need's. */
export type NeedKind = "rows" | "scales" | "agreement";

/** A window of a checkpoint tensor, in elements of it: what a rank cuts out of one. */
export interface Need {
  kind: NeedKind;
  /** Index into Layout.checkpointTensors. */
  tensor: number;
  first: number;
  rows: number;
  cols: number;
  rowStride: number;
  colStride: number;
  /** First row of the matrix that it fills. */
  toRow: number;
  /** Of codes: which of the matrix's needs has their scales, and how; null: none. */
  scaledBy: { need: number; blockRows: number; blockCols: number; firstRow: number; firstCol: number } | null;
}

/** One matrix of a rank's arena, an op of a layer's program. */
export interface Matrix {
  /** Index into Layout.layers. */
  layer: number;
  phase: KernelTensor["phase"];
  kernel: KernelTensor;
  module: string;
  /** A row of a program's ops. */
  op: Float64Array;
  rows: number;
  cols: number;
  /** Rows that no need fills: they are zero, or the constant. */
  unfilled: RowRanges;
  /** It can be written in so many rows at a time, counted from the first; "all": only whole. */
  rowsTogether: number | "all";
  needs: Need[];
}

export interface RankMatrices {
  /** In the order of loading. */
  matrices: Matrix[];
  /** Of which matrices is the checkpoint tensor needed, and which of their needs it is. */
  byTensor: ReadonlyMap<number, readonly { matrix: number; need: number }[]>;
  /** What is made of matrices that are finished. */
  derived: { kernel: KernelTensor; row: Float64Array }[];
  places: Places;
}

export function matricesOfRank(layout: Layout, arena: ArenaLayout, rank: number): RankMatrices {
  const places = placesOf(arena);
  const matrices: Matrix[] = [];
  const derived: RankMatrices["derived"] = [];
  for (const [index, layer] of layout.layers.entries()) {
    for (const phase of ["layer", "finalize"] as const) {
      const geometry = layerGeometry(layout, places, index, { rank, phase });
      const kernels = layer.kernelTensors
        .filter((kernel) => kernel.phase === phase && kernel.derived === null)
        .flatMap((kernel) =>
          new Array<KernelTensor>(matricesOf(kernel, rank, layout.tensorParallelSize).count).fill(kernel),
        );
      matrices.push(...kernels.map((kernel, row) => matrixOf(geometry, row, kernel, index)));
      const made = layer.kernelTensors.filter((kernel) => kernel.phase === phase && kernel.derived !== null);
      const { derived: width } = WIDTHS;
      derived.push(
        ...made.map((kernel, row) => ({ kernel, row: geometry.derived.slice(row * width, (row + 1) * width) })),
      );
    }
  }
  const byTensor = new Map<number, { matrix: number; need: number }[]>();
  matrices.forEach(({ needs }, matrix) => {
    needs.forEach(({ tensor }, need) => {
      const known = byTensor.get(tensor);
      if (known === undefined) byTensor.set(tensor, [{ matrix, need }]);
      else known.push({ matrix, need });
    });
  });
  return { matrices, byTensor, derived, places };
}

/** Op `row` of the geometry, a matrix of the kernel tensor. */
function matrixOf(geometry: Geometry, row: number, kernel: KernelTensor, layer: number): Matrix {
  const { ops, slices } = geometry;
  const op = ops.slice(row * WIDTHS.ops, (row + 1) * WIDTHS.ops);
  const end = ops[(row + 1) * WIDTHS.ops + OP.firstSlice] ?? slices.length / WIDTHS.slices;
  const needs = needsOf(geometry, op[OP.firstSlice] ?? 0, end, kernel.mustAgree);
  const rows = op[OP.rows] ?? 0;
  return {
    layer,
    phase: kernel.phase,
    kernel,
    module: moduleOf(kernel.name),
    op,
    rows,
    cols: op[OP.cols] ?? 0,
    unfilled: withoutRows([{ from: 0, to: rows }], needs.filter(({ kind }) => kind === "rows").map(rowsOfNeed)),
    rowsTogether: kernel.mustAgree || kernel.mustBePositive ? "all" : SCHEMES[kernel.scheme].rowsTogether,
    needs,
  };
}

/** Rows of the matrix that the need fills. */
export function rowsOfNeed({ toRow, rows }: Pick<Need, "toRow" | "rows">): RowRange {
  return { from: toRow, to: toRow + rows };
}

/** Slices [from, to) of the geometry, and the scales of those that are codes. */
function needsOf(
  { slices, scales }: Pick<Geometry, "slices" | "scales">,
  from: number,
  to: number,
  mustAgree: boolean,
): Need[] {
  const needs: Need[] = [];
  const scaleNeeds: Need[] = [];
  for (let slice = from; slice < to; slice++) {
    const column = (name: keyof typeof SLICE) => slices[slice * WIDTHS.slices + SLICE[name]] ?? 0;
    const need: Need = {
      kind: mustAgree && slice > from ? "agreement" : "rows",
      tensor: column("file"),
      first: column("offset"),
      rows: column("rows"),
      cols: column("cols"),
      rowStride: column("rowStride"),
      colStride: column("colStride"),
      toRow: column("toRow"),
      scaledBy: null,
    };
    if (column("scale") !== -1) {
      const { need: scaleNeed, by } = scalesOf(scales, column("scale"), need);
      need.scaledBy = { ...by, need: to - from + scaleNeeds.length };
      scaleNeeds.push(scaleNeed);
    }
    needs.push(need);
  }
  return [...needs, ...scaleNeeds];
}

/** The whole rows of scales that the codes of a need have, from the first of the matrix on. */
function scalesOf(scales: Float64Array, row: number, { rows, cols }: Need) {
  const column = (name: keyof typeof SCALE) => scales[row * WIDTHS.scales + SCALE[name]] ?? 0;
  const by = {
    blockRows: column("blockRows"),
    blockCols: column("blockCols"),
    firstRow: column("firstRow"),
    firstCol: column("firstCol"),
  };
  const need: Need = {
    kind: "scales",
    tensor: column("file"),
    first: column("offset"),
    rows: Math.floor((by.firstRow + rows - 1) / by.blockRows) + 1,
    cols: Math.floor((by.firstCol + cols - 1) / by.blockCols) + 1,
    rowStride: column("rowStride"),
    colStride: 1,
    toRow: 0,
    scaledBy: null,
  };
  return { need, by };
}

/** Columns of it lie together in the checkpoint tensor, instead of rows. */
export function isTransposed({ cols, colStride }: Pick<Need, "cols" | "colStride">): boolean {
  return cols > 1 && colStride !== 1;
}

/**
 * Rows of the need that rows [from, to) of the tensor's first dimension give. A need lies in one of them (an expert of a
 * stack, a scalar), or has one each.
 */
export function rowsGivenBy(
  need: Pick<Need, "first" | "rows" | "rowStride">,
  shape: readonly number[],
  from: number,
  to: number,
): { from: number; to: number } | null {
  const rowElements = elementCount(shape.slice(1));
  const firstRow = Math.floor(need.first / rowElements);
  if (need.rowStride !== rowElements || need.rows === 1)
    return from <= firstRow && firstRow < to ? { from: 0, to: need.rows } : null;
  const [first, last] = [Math.max(0, from - firstRow), Math.min(need.rows, to - firstRow)];
  return first < last ? { from: first, to: last } : null;
}

/** Byte of a need's row in a place where the tensor's row `firstRow` is at `offset`. */
export function offsetOfRow(
  need: Pick<Need, "first" | "rowStride">,
  row: number,
  {
    shape,
    firstRow,
    offset,
    elementBytes,
  }: { shape: readonly number[]; firstRow: number; offset: number; elementBytes: number },
): number {
  const rowElements = elementCount(shape.slice(1));
  return offset + (need.first + row * need.rowStride - firstRow * rowElements) * elementBytes;
}
