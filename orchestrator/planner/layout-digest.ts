// Turns a layout into its digest: sha256 over what the arena looks like and how each rank's tensors are cut, in a fixed
// order of its own, so that no order of keys matters. Two plans with one digest have layouts that are the same, and programs
// resolved for one serve the other; files, offsets and the dtypes that values are rounded from are not in it.

import { createHash } from "node:crypto";
import type { KernelTensor, Layout, Part } from "../contract/plan.js";

export function digestLayout(layout: Layout): string {
  const { modelType, tensorParallelSize, expertParallel, scheme } = layout;
  const hash = createHash("sha256");
  hash.update(JSON.stringify([FORMAT, modelType, tensorParallelSize, expertParallel, scheme]));
  hash.update(JSON.stringify(layout.checkpointTensors.map(({ name, shape }) => [name, shape])));
  for (const { name, kernelTensors } of layout.layers)
    hash.update(JSON.stringify([name, kernelTensors.map(tensorFacts)]));
  return hash.digest("hex");
}

function tensorFacts(tensor: KernelTensor): unknown[] {
  const { name, dtype, shape, rows, cols, experts, derived, scheme, scale, roundTo } = tensor;
  const { constant, mustBePositive, mustAgree, phase, parts } = tensor;
  const ownScale = scale === null ? null : [scale.name, scale.shape];
  const expertFacts = experts === null ? null : [experts.count, experts.byRank];
  const facts = [name, dtype, shape, rows, cols, expertFacts, derivedFacts(derived), scheme, ownScale, roundTo];
  return [...facts, constant, mustBePositive, mustAgree, phase, parts.map(partFacts)];
}

function derivedFacts(derived: KernelTensor["derived"]): unknown[] | null {
  if (derived === null) return null;
  const { from, scheme, scale, heads, headRows, firstRow, transposed } = derived;
  return [from, scheme, scale, heads, headRows, firstRow, transposed];
}

function partFacts({ tensors, firsts, rows, cols, rowStride, colStride, rule, scales }: Part): unknown[] {
  const size = rule.kind === "kv_heads" ? rule.heads : rule.kind === "vocabulary" ? rule.paddedRows : null;
  return [tensors, firsts, rows, cols, rowStride, colStride, rule.kind, size, scaleFacts(scales)];
}

function scaleFacts(scales: Part["scales"]): unknown[] | null {
  if (scales === null) return null;
  const { tensors, firsts, rowStride, blockRows, blockCols, row, col } = scales;
  return [tensors, firsts, rowStride, blockRows, blockCols, row, col];
}

/** Bumped when the meaning of a layout changes, so that nothing resolved before is taken for it. */
const FORMAT = 2;
