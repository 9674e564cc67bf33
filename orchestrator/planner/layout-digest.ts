// Turns a layout into its two digests, each sha256 over facts in a fixed order, so that no order of keys matters. The layout
// digest is the arena's identity: which kernel tensors a rank holds, and which of the model's values each of them is. The
// mapping digest is also of the checkpoint tensors that fill them and of how they are cut: two plans with one have layouts
// that are the same, and programs resolved for one serve the other. Files, offsets and the dtypes that values are rounded from are in neither.

import { createHash } from "node:crypto";
import type { KernelTensor, Layout, Part } from "../contract/plan.js";
import { cutPart } from "../program/cut-part.js";

/**
 * `family`: the model family's own name. Equal for two checkpoints that fill the same kernel tensors, whether their experts are
 * stacked, their scales have other names or shapes, or a size on disk is padded.
 */
export function digestLayout(family: string, { tensorParallelSize, layers }: Layout): string {
  const hash = createHash("sha256");
  hash.update(JSON.stringify([LAYOUT_FORMAT, family, tensorParallelSize]));
  for (const { name, kernelTensors } of layers)
    hash.update(JSON.stringify([name, kernelTensors.map((tensor) => kernelFacts(tensor, tensorParallelSize))]));
  return hash.digest("hex");
}

/** What a consumer sees of the tensor. How many tensors of a checkpoint give one number is not part of it. */
function kernelFacts({ name, dtype, shape, rows, cols, experts, scale, derived, parts }: KernelTensor, ranks: number) {
  const expertFacts = experts === null ? null : [experts.count, experts.byRank];
  const ownScale = scale === null ? null : [scale.name, scale.shape];
  const { heads, headRows, firstRow, transposed } = derived ?? {};
  const ofHeads = derived === null ? null : [heads, headRows, firstRow, transposed];
  const shares = rows * cols === 1 ? [] : parts.map((part) => shareFacts(part, ranks));
  return [name, dtype, shape, expertFacts, ownScale, ofHeads, shares];
}

/** By which rule ranks share the part, and how many rows of the kernel tensor it takes. */
function shareFacts(part: Part, ranks: number): unknown[] {
  const { rows, zeroRows, cols } = cutPart(part, 0, ranks);
  return [part.rule.kind, sizeOf(part.rule), rows + zeroRows, cols];
}

export function digestMapping(layout: Layout): string {
  const { modelType, tensorParallelSize, expertParallel, scheme } = layout;
  const hash = createHash("sha256");
  hash.update(JSON.stringify([MAPPING_FORMAT, modelType, tensorParallelSize, expertParallel, scheme]));
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

function partFacts({ tensors, firsts, rows, cols, rowStride, colStride, rule, padTo, scales }: Part): unknown[] {
  return [tensors, firsts, rows, cols, rowStride, colStride, rule.kind, sizeOf(rule), padTo, scaleFacts(scales)];
}

function sizeOf(rule: Part["rule"]): number | null {
  if (rule.kind === "kv_heads") return rule.heads;
  return rule.kind === "vocabulary" ? rule.paddedRows : null;
}

function scaleFacts(scales: Part["scales"]): unknown[] | null {
  if (scales === null) return null;
  const { tensors, firsts, rowStride, blockRows, blockCols, row, col } = scales;
  return [tensors, firsts, rowStride, blockRows, blockCols, row, col];
}

/** Bumped when the arena of a layout changes, so that no arena that stands is taken for it. */
const LAYOUT_FORMAT = 3;
/** Bumped when the meaning of a layout changes, so that nothing resolved before is taken for it. */
const MAPPING_FORMAT = 3;
