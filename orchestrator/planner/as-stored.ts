// Keeps a checkpoint's own FP8 codes and scales: both are cut and stacked by the same rules, so that every code still has its
// scale, and neither changes. Where a cut would go through a block of codes that share a scale, or where one scale would have
// to serve codes with several, the plan is refused with what would work.

import { countOf } from "../contract/count-of.js";
import { LayercastError } from "../contract/errors.js";
import type { CheckpointTensor, KernelTensor, Part } from "../contract/plan.js";
import { SCALE_BLOCK, SCHEMES, type Scheme } from "../contract/recipe.js";
import { cutPart, indivisibleSize } from "../program/cut-part.js";
import type { PartSpec } from "./architectures/family.js";
import type { MatchedTensor } from "./match-tensors.js";
import { inputScaleName, originInMatrix, type ScaleMatrices, type StoredScales } from "./stored-scales.js";

export interface AsStoredSettings {
  tensorParallelSize: number;
  expertParallel: boolean;
  indexOf: (tensor: CheckpointTensor) => number;
}

/** The kernel tensors beside `codes`, one of codes that are kept: its scales, and those of its input where there are any. */
export function keptScales(codes: KernelTensor, matched: MatchedTensor, settings: AsStoredSettings): KernelTensor[] {
  const parts = storedParts(codes, matched);
  const name = scaledBy(matched).scale;
  const tensors = [scalesOf(name, codes, parts, settings)];
  const inputs = inputScalesOf(matched);
  if (inputs !== null) tensors.push(oneScale(inputScaleName(codes.name), codes, inputs, settings));
  return tensors;
}

/** How all parts of a matched tensor are scaled, and the kernel tensor that has the scales: named by what they are for alone. */
export function scaledBy({ spec, parts }: MatchedTensor): { scheme: Exclude<Scheme, "none">; scale: string } {
  const scales = parts.map((part) => part.scales).filter((one) => one !== null);
  const [first] = scales;
  if (first === undefined) throw new LayercastError("internal", `${spec.name} has no scales.`);
  const other = scales.find(({ scheme }) => scheme !== first.scheme);
  if (other !== undefined)
    throw new LayercastError(
      "unsupported_recipe",
      `The parts of ${spec.name} have scales of different kinds, ${first.tensors[0]?.name} and ${other.tensors[0]?.name}, ` +
        `so they cannot be fused as they are stored. What works is ${REQUANTIZING}.`,
      { kernel_tensor: spec.name },
    );
  return { scheme: first.scheme, scale: spec.name + SCHEMES[first.scheme].scaleSuffix };
}

/** A part of codes, and where it and its scales lie on disk. */
interface StoredPart {
  spec: PartSpec;
  part: Part;
  scales: StoredScales;
  /** The first of its tensors. */
  tensor: CheckpointTensor;
  /** Where the part begins in the matrix of codes. */
  row: number;
  col: number;
}

function storedParts(codes: KernelTensor, { parts }: MatchedTensor): StoredPart[] {
  return parts.map(({ spec, source, tensors, scales }, index) => {
    const part = codes.parts[index];
    const tensor = tensors[0];
    if (part === undefined || tensor === undefined || scales === null)
      throw new LayercastError("internal", `${codes.name} has no part ${index}, or no scales of it.`);
    return { spec, part, scales, tensor, ...originInMatrix(source, tensor) };
  });
}

function scalesOf(name: string, codes: KernelTensor, stored: StoredPart[], settings: AsStoredSettings): KernelTensor {
  const scheme = stored[0]?.scales.scheme;
  if (scheme === "fp8-tensor") {
    const scales = stored.map((one) => one.scales);
    return oneScale(name, codes, scales, settings);
  }
  checkOneDType(codes, stored);
  if (scheme === "fp8-block") checkBlocks(codes, stored, settings);
  const scalesOfPart = scheme === "fp8-block" ? blockScales : rowScales;
  const parts = stored.map((one) => scalesOfPart(one, settings));
  const cuts = parts.map((part) => cutPart(part, 0, settings.tensorParallelSize));
  const rows = cuts.reduce((sum, cut) => sum + cut.rows + cut.zeroRows, 0);
  const cols = cuts[0]?.cols ?? 1;
  return { ...codes, ...KEPT_SCALES, name, shape: [rows, cols], rows, cols, parts };
}

/** One scale a block: the blocks of a part are cut as the part is, for checkBlocks has seen to the edges. */
function blockScales({ part, scales, row, col }: StoredPart, { indexOf }: AsStoredSettings): Part {
  const { rowStride } = scales;
  const start = (row / SCALE_BLOCK) * rowStride + col / SCALE_BLOCK;
  const rows = Math.ceil(part.rows / SCALE_BLOCK);
  const cols = Math.ceil(part.cols / SCALE_BLOCK);
  return { ...elementsFrom(scales, start, indexOf), rows, cols, rowStride, rule: inBlocks(part.rule) };
}

/** A cut of rows of codes as one of the blocks that they are in. */
function inBlocks(rule: Part["rule"]): Part["rule"] {
  return rule.kind === "vocabulary" ? { ...rule, paddedRows: Math.ceil(rule.paddedRows / SCALE_BLOCK) } : rule;
}

/** One scale a row: it goes where the row goes, and everywhere where the rows are cut by columns. */
function rowScales({ part, scales, row }: StoredPart, { indexOf }: AsStoredSettings): Part {
  const rule: Part["rule"] = part.rule.kind === "columns" ? { kind: "replicate" } : part.rule;
  // A row's scale lies beside the next row's; in `[1, rows]` or `[E, rows]` that is along the tensor's last dimension.
  const [shape = []] = scales.tensors.map((tensor) => tensor.shape);
  const colStride = shape.length < 2 ? 1 : (shape.at(-1) ?? 1);
  return { ...elementsFrom(scales, row, indexOf), rows: part.rows, cols: 1, rowStride: 1, colStride, rule };
}

/** One scale for all of a matrix, or for its input: on every rank, and the same in all parts. */
function oneScale(
  name: string,
  codes: KernelTensor,
  scales: readonly ScaleMatrices[],
  { indexOf }: AsStoredSettings,
): KernelTensor {
  const parts: Part[] = [];
  for (const one of scales) {
    const rule: Part["rule"] = { kind: "replicate" };
    const part: Part = { ...elementsFrom(one, 0, indexOf), rows: 1, cols: 1, rowStride: 1, rule };
    // Windows of one tensor have its one scale.
    if (!parts.some((other) => isSame(other, part))) parts.push(part);
  }
  const shape = codes.experts === null ? [1] : [];
  return { ...codes, ...KEPT_SCALES, name, shape, rows: 1, cols: 1, parts, mustAgree: true };
}

function elementsFrom(
  { tensors, firsts }: ScaleMatrices,
  start: number,
  indexOf: AsStoredSettings["indexOf"],
): Pick<Part, "tensors" | "firsts" | "colStride" | "padTo" | "scales"> {
  return {
    tensors: tensors.map(indexOf),
    firsts: firsts.map((first) => first + start),
    colStride: 1,
    padTo: 1,
    scales: null,
  };
}

function isSame(one: Part, other: Part): boolean {
  return one.tensors.every((tensor, at) => tensor === other.tensors[at] && one.firsts[at] === other.firsts[at]);
}

function inputScalesOf({ spec, parts }: MatchedTensor): ScaleMatrices[] | null {
  const inputs = parts.map(({ scales }) => scales?.inputs ?? null).filter((one) => one !== null);
  if (inputs.length === 0) return null;
  if (inputs.length === parts.length) return inputs;
  throw new LayercastError(
    "unsupported_recipe",
    `Some parts of ${spec.name} have a scale of their input, such as ${inputs[0]?.tensors[0]?.name}, and others have none, ` +
      `so they cannot be fused as they are stored. What works is ${REQUANTIZING}.`,
    { kernel_tensor: spec.name },
  );
}

/**
 * Every part of every rank begins where a block of scales begins, and ends where one ends, so that no block is cut and no two
 * parts share one. Only what is at the end of its matrix and last in the kernel tensor may end with less than a block.
 */
function checkBlocks(codes: KernelTensor, stored: StoredPart[], settings: AsStoredSettings): void {
  const ranks = settings.tensorParallelSize;
  const fault = blockFault(stored, ranks);
  if (fault === null) return;
  const works: string[] = [];
  for (let fewer = ranks - 1; fewer > 0 && works.length === 0; fewer--) {
    // What can be split over all the ranks can be over a divisor of them, mostly.
    const divides = ranks % fewer === 0 && stored.every(({ spec }) => indivisibleSize(spec, fewer) === null);
    if (divides && blockFault(stored, fewer) === null) works.push(`tensor-parallel size ${fewer}`);
  }
  const isCutByRanks = codes.experts !== null && !settings.expertParallel;
  if (isCutByRanks && blockFault(stored, 1) === null) works.push("expert parallelism");
  throw new LayercastError(
    "indivisible",
    `${fault.tensor} cannot be split over ${countOf(ranks, "rank")} as it is stored: ${fault.what}, inside a block of ${SCALE_BLOCK} × ` +
      `${SCALE_BLOCK} codes that share a scale. What works is ${[...works, REQUANTIZING].join(", or ")}.`,
    { tensor: fault.tensor, kernel_tensor: codes.name, tensor_parallel_size: ranks },
  );
}

/** What is stacked is read in one dtype. */
function checkOneDType(codes: KernelTensor, stored: readonly StoredPart[]): void {
  const tensors = stored.flatMap(({ scales }) => scales.tensors);
  const first = tensors[0];
  const other = tensors.find(({ dtype }) => dtype !== first?.dtype);
  if (first === undefined || other === undefined) return;
  throw new LayercastError(
    "unsupported_dtype",
    `The scales of ${codes.name} have different dtypes: ${first.name} ${first.dtype}, ${other.name} ${other.dtype}. ` +
      `Write them all in one dtype, or what works as it is: ${REQUANTIZING}.`,
    { tensor: other.name, dtypes: { [first.name]: first.dtype, [other.name]: other.dtype } },
  );
}

/** The first edge of a rank's part that lies inside a block. */
function blockFault(stored: readonly StoredPart[], ranks: number): { tensor: string; what: string } | null {
  for (const { part, tensor, row, col } of stored) {
    const [matrixRows = 1, matrixCols = 1] = tensor.shape.slice(-2);
    const isLast = part === stored.at(-1)?.part;
    for (let rank = 0; rank < ranks; rank++) {
      const cut = cutPart(part, rank, ranks);
      if (cut.rows === 0) continue; // of a vocabulary it has only padding
      const endRow = row + cut.row + cut.rows;
      const endCol = col + cut.col + cut.cols;
      const edges: [what: string, at: number, mayBeInside: boolean][] = [
        ["begins at row", row + cut.row, false],
        ["ends at row", endRow, isLast && endRow === matrixRows],
        ["begins at column", col + cut.col, false],
        ["ends at column", endCol, endCol === matrixCols],
      ];
      const fault = edges.find(([, at, mayBeInside]) => at % SCALE_BLOCK !== 0 && !mayBeInside);
      if (fault !== undefined) return { tensor: tensor.name, what: `rank ${rank}'s part ${fault[0]} ${fault[1]}` };
    }
  }
  return null;
}

const REQUANTIZING = "requantizing with dtype: bfloat16 and recipe fp8-block";

/** F32, whatever the checkpoint has them in: no F16 or BF16 changes by that. */
const KEPT_SCALES = { dtype: "F32", roundTo: null } as const satisfies Partial<KernelTensor>;
