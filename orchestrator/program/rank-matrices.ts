// A rank's matrices, numbered in the order of loading, and for each checkpoint tensor which windows of which of them it fills. It
// follows from the layout alone, so it is worked out once and serves every reload of the layout.

import { LayercastError } from "../contract/errors.js";
import type { ArenaLayout, Layout } from "../contract/plan.js";
import { type DerivedGeometry, type KernelGeometry, layerGeometry, placesOf, type Window } from "./rank-geometry.js";
import type { RowRange } from "./row-ranges.js";

export interface RankMatrices {
  kernels: readonly KernelGeometry[];
  /** Made of matrices that are finished. */
  derived: readonly DerivedGeometry[];
  /** By matrix: index into `kernels`. */
  kernelOf: Int32Array;
  /** By kernel tensor: its first matrix. */
  firstMatrix: Int32Array;
  uses: TensorUses;
}

/** By checkpoint tensor: the windows that are of it, entries [starts[tensor], starts[tensor + 1]) of the other two. */
interface TensorUses {
  starts: Int32Array;
  matrices: Int32Array;
  windows: Int32Array;
}

export function matricesOfRank(layout: Layout, arena: ArenaLayout, rank: number): RankMatrices {
  const places = placesOf(arena);
  const geometries = layout.layers.flatMap((_, layer) =>
    (["layer", "finalize"] as const).map((phase) => layerGeometry(layout, places, layer, { rank, phase })),
  );
  const kernels = geometries.flatMap((geometry) => geometry.kernels);
  const derived = geometries.flatMap((geometry) => geometry.derived);
  return numbered(kernels, derived, layout.checkpointTensors.length);
}

/** `tensors`: how many checkpoint tensors the layout has. */
export function numbered(
  kernels: readonly KernelGeometry[],
  derived: readonly DerivedGeometry[],
  tensors: number,
): RankMatrices {
  const firstMatrix = new Int32Array(kernels.length);
  let matrices = 0;
  for (const [index, { count }] of kernels.entries()) {
    firstMatrix[index] = matrices;
    matrices += count;
  }
  const kernelOf = new Int32Array(matrices);
  for (const [index, { count }] of kernels.entries()) {
    const first = firstMatrix[index] ?? 0;
    kernelOf.fill(index, first, first + count);
  }
  return { kernels, derived, kernelOf, firstMatrix, uses: usesOf(kernels, firstMatrix, tensors) };
}

/** Counts the uses of each tensor, then puts them in; some 90,000 of a large model are three arrays, not as many objects. */
function usesOf(kernels: readonly KernelGeometry[], firstMatrix: Int32Array, tensors: number): TensorUses {
  const starts = new Int32Array(tensors + 1);
  for (const { windows } of kernels)
    for (const window of windows)
      for (const tensor of window.tensors) starts[tensor + 1] = (starts[tensor + 1] ?? 0) + 1;
  for (let tensor = 0; tensor < tensors; tensor++)
    starts[tensor + 1] = (starts[tensor + 1] ?? 0) + (starts[tensor] ?? 0);
  const next = starts.slice(0, tensors);
  const count = starts[tensors] ?? 0;
  const uses: TensorUses = { starts, matrices: new Int32Array(count), windows: new Int32Array(count) };
  for (const [index, { windows }] of kernels.entries()) {
    for (const [number, window] of windows.entries()) {
      for (const [matrix, tensor] of window.tensors.entries()) {
        const at = next[tensor] ?? 0;
        next[tensor] = at + 1;
        uses.matrices[at] = (firstMatrix[index] ?? 0) + matrix;
        uses.windows[at] = number;
      }
    }
  }
  return uses;
}

/** One matrix of a rank's arena. */
export interface Matrix {
  geometry: KernelGeometry;
  /** Which of the kernel tensor's, counted from the rank's first. */
  matrix: number;
}

export function matrixOf({ kernels, kernelOf, firstMatrix }: RankMatrices, index: number): Matrix {
  const kernel = kernelOf[index] ?? -1;
  const geometry = kernels[kernel];
  if (geometry === undefined) throw new LayercastError("internal", `The rank has no matrix ${index}.`);
  return { geometry, matrix: index - (firstMatrix[kernel] ?? 0) };
}

/** Those of a layer that do not wait for finalize. */
export function matricesOfLayer({ kernels, firstMatrix }: RankMatrices, layer: number): number[] {
  return kernels.flatMap(({ kernel, layer: of, count }, index) =>
    of === layer && kernel.phase === "layer"
      ? Array.from({ length: count }, (_, matrix) => (firstMatrix[index] ?? 0) + matrix)
      : [],
  );
}

/** Calls `each` for every window that is of the tensor. */
export function forEachUse(
  { uses: { starts, matrices, windows } }: RankMatrices,
  tensor: number,
  each: (index: number, window: number) => void,
): void {
  const end = starts[tensor + 1] ?? 0;
  for (let at = starts[tensor] ?? 0; at < end; at++) each(matrices[at] ?? -1, windows[at] ?? -1);
}

/**
 * Rows of a window that rows [from, to) of the tensor's first dimension give. A window lies in one of them (an expert of a stack,
 * a scalar), or has one each. `first`: the window's first element; `rowElements`: elements of a row of the tensor.
 */
export function rowsGivenBy(
  { rows, rowStride }: Pick<Window, "rows" | "rowStride">,
  first: number,
  rowElements: number,
  { from, to }: RowRange,
): RowRange | null {
  const firstRow = Math.floor(first / rowElements);
  if (rowStride !== rowElements || rows === 1) return from <= firstRow && firstRow < to ? { from: 0, to: rows } : null;
  const given = { from: Math.max(0, from - firstRow), to: Math.min(rows, to - firstRow) };
  return given.from < given.to ? given : null;
}
