// Turns a layout into its digest: sha256 over what the arena looks like and how each rank's tensors are cut, in a fixed
// order of its own, so that no order of keys matters. Two plans with one digest have layouts that are the same, and programs
// resolved for one serve the other; files, offsets and the dtypes that values are rounded from are not in it.

import { createHash } from "node:crypto";
import type { KernelTensor, Layout, Part } from "../contract/plan.js";

export function digestLayout(layout: Layout): string {
  const hash = createHash("sha256");
  hash.update(JSON.stringify([FORMAT, layout.modelType, layout.tensorParallelSize, layout.scheme]));
  hash.update(JSON.stringify(layout.checkpointTensors));
  for (const { name, kernelTensors } of layout.layers)
    hash.update(JSON.stringify([name, kernelTensors.map(tensorFacts)]));
  return hash.digest("hex");
}

function tensorFacts(tensor: KernelTensor): unknown[] {
  const { name, dtype, shape, rows, cols, scheme, scale, roundTo, constant, mustBePositive, phase } = tensor;
  const scaleFacts = scale === null ? null : [scale.name, scale.shape];
  const facts = [name, dtype, shape, rows, cols, scheme, scaleFacts, roundTo, constant, mustBePositive, phase];
  return [...facts, tensor.parts.map(partFacts)];
}

function partFacts({ tensor, rows, cols, rule }: Part): unknown[] {
  const size = rule.kind === "kv_heads" ? rule.heads : rule.kind === "vocabulary" ? rule.paddedRows : null;
  return [tensor, rows, cols, rule.kind, size];
}

/** Bumped when the meaning of a layout changes, so that nothing resolved before is taken for it. */
const FORMAT = 1;
