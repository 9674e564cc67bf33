// Counts the bytes of a plan: what a rank reads from the checkpoint for a layer, and what it writes to its arena.

import { byteCount, DTYPES } from "../contract/dtype.js";
import type { KernelTensor, Layout, Part, Plan, PlanLayer } from "../contract/plan.js";
import { type Cut, cutPart } from "../program/cut-part.js";
import { heldShape, matricesOf } from "../program/expert-placement.js";

export function readBytesOf(plan: Plan, layer: PlanLayer, rank: number): number {
  const ranks = plan.layout.tensorParallelSize;
  let bytes = 0;
  for (const kernel of layer.kernelTensors) {
    const { first, count } = matricesOf(kernel, rank, ranks);
    for (const part of kernel.parts) {
      const cut = cutPart(part, rank, ranks);
      bytes += count * scaleBytes(plan, part, cut);
      for (let matrix = first; matrix < first + count; matrix++)
        bytes += cut.rows * cut.cols * elementBytes(plan, part.tensors[matrix]);
    }
  }
  return bytes;
}

/** Of one matrix, where its codes are made values. */
function scaleBytes(plan: Plan, { scales }: Part, cut: Cut): number {
  if (scales === null) return 0;
  const { blockRows, blockCols, row, col } = scales;
  const blocks = (first: number, size: number, block: number) =>
    Math.floor((first + size - 1) / block) - Math.floor(first / block) + 1;
  const count = blocks(row + cut.row, cut.rows, blockRows) * blocks(col + cut.col, cut.cols, blockCols);
  return count * elementBytes(plan, scales.tensors[0]);
}

function elementBytes({ source }: Plan, tensor: number | undefined): number {
  return DTYPES[source.dtype[tensor ?? -1] ?? "F32"].bytes;
}

/** Of the rank that reads most: padding makes the last ranks read less of a vocabulary, and fewer experts less of a layer. */
export function mostReadBytesOf(plan: Plan, layer: PlanLayer): number {
  let most = 0;
  for (let rank = 0; rank < plan.layout.tensorParallelSize; rank++)
    most = Math.max(most, readBytesOf(plan, layer, rank));
  return most;
}

/** Pads are not counted. */
export function heldBytesOf(layout: Layout, layer: PlanLayer, rank: number): number {
  return layer.kernelTensors.reduce((sum, kernel) => sum + tensorBytes(kernel, rank, layout.tensorParallelSize), 0);
}

/** Of a rank that holds most: the first, for experts that remain go to the first ranks. */
export function mostHeldBytesOf(layout: Layout, layer: PlanLayer): number {
  return heldBytesOf(layout, layer, 0);
}

function tensorBytes(kernel: KernelTensor, rank: number, ranks: number): number {
  const { dtype, shape, scale } = kernel;
  const scales = scale === null ? 0 : byteCount("F32", heldShape(kernel, scale.shape, rank, ranks));
  return byteCount(dtype, heldShape(kernel, shape, rank, ranks)) + scales;
}
