// Counts the bytes of a plan: what a rank reads from the checkpoint for a layer, and what it writes to its arena.

import { byteCount, DTYPES } from "../contract/dtype.js";
import type { KernelTensor, Plan, PlanLayer } from "../contract/plan.js";
import { cutPart } from "./cut-part.js";

export function readBytesOf(plan: Plan, layer: PlanLayer, rank: number): number {
  let bytes = 0;
  for (const { parts } of layer.kernelTensors) {
    for (const part of parts) {
      const { rows, cols } = cutPart(part, rank, plan.layout.tensorParallelSize);
      bytes += rows * cols * DTYPES[plan.source.dtype[part.tensor] ?? "F32"].bytes;
    }
  }
  return bytes;
}

/** Of the rank that reads most: padding makes the last ranks read less of a vocabulary. */
export function mostReadBytesOf(plan: Plan, layer: PlanLayer): number {
  let most = 0;
  for (let rank = 0; rank < plan.layout.tensorParallelSize; rank++)
    most = Math.max(most, readBytesOf(plan, layer, rank));
  return most;
}

/** Equal on all ranks; pads are not counted. */
export function heldBytesOf(layer: PlanLayer): number {
  return layer.kernelTensors.reduce((sum, kernel) => sum + tensorBytes(kernel), 0);
}

function tensorBytes({ dtype, shape, scale }: KernelTensor): number {
  return byteCount(dtype, shape) + (scale === null ? 0 : byteCount("F32", scale.shape));
}
