// Turns (checkpoint table, model config, size and kind of parallelism, recipe) into the plan: every kernel tensor of every
// layer, with the parts that fill it, the rule by which a rank cuts each part, and where the bytes are. Pure. The file to read
// first.

import { createHash } from "node:crypto";
import type { ModelConfig } from "../checkpoint/model-config.js";
import { holdsCodes, quantizationNotApplied } from "../checkpoint/not-applied.js";
import { countOf } from "../contract/count-of.js";
import {
  type DType,
  REQUEST_DTYPES,
  type RequestDType,
  type SourceDType,
  type StoredDType,
} from "../contract/dtype.js";
import { LayercastError } from "../contract/errors.js";
import { joinNames } from "../contract/join-names.js";
import type {
  CheckpointFile,
  CheckpointTable,
  CheckpointTensor,
  KernelTensor,
  Layout,
  Part,
  Plan,
  PlanLayer,
  Source,
} from "../contract/plan.js";
import { expertsPadTo, type Recipe, SCHEMES, type Scheme } from "../contract/recipe.js";
import { cutPart, indivisibleSize } from "../program/cut-part.js";
import { familyOf, layersOf, readDimensions } from "./architectures/index.js";
import { keptScales, scaledBy } from "./as-stored.js";
import { matchIgnored } from "./ignore-patterns.js";
import { digestLayout, digestMapping } from "./layout-digest.js";
import { type MatchedLayer, type MatchedPart, type MatchedTensor, matchTensors } from "./match-tensors.js";
import { checkQuantizationConfig, dtypeOfConfig } from "./quantization-config.js";
import { dequantizing, originInMatrix } from "./stored-scales.js";

export interface PlanRequest {
  table: CheckpointTable;
  config: ModelConfig;
  tensorParallelSize: number;
  /** Whole experts by rank, instead of a cut of each. */
  expertParallel: boolean;
  scheme: Recipe;
  ignore: readonly string[];
  dtype: RequestDType;
}

export function planReload(request: PlanRequest): Plan {
  const { table, config, tensorParallelSize, expertParallel, scheme } = request;
  if (!Number.isSafeInteger(tensorParallelSize) || tensorParallelSize < 1)
    throw new LayercastError(
      "invalid_request",
      `The tensor-parallel size is ${tensorParallelSize}; it must be 1 or more.`,
    );
  const family = familyOf(config);
  const model = readDimensions(config, family);
  if (scheme === "as-stored" || holdsCodes(table.tensors)) checkQuantizationConfig(config);
  const keepInputScales = scheme === "as-stored";
  const roundTo = REQUEST_DTYPES[request.dtype];
  const rounds = roundTo !== null;
  const match = matchTensors({ layers: layersOf(family, model), family, model, table, rounds, keepInputScales });
  const used = numberTensors();
  const settings: Settings = {
    tensorParallelSize,
    expertParallel,
    recipe: scheme,
    ignored: matchIgnored(request.ignore, [...table.tensors.keys()]),
    roundTo,
    configDType: dtypeOfConfig(model.config) ?? dtypeOfConfig(config) ?? "BF16",
    indexOf: used.indexOf,
  };
  const layers = match.layers.map((layer) => planLayer(layer, settings));
  const checkpointTensors = used.tensors.map(({ name, shape }) => ({ name, shape }));
  const { modelType } = model;
  const layout: Layout = { modelType, tensorParallelSize, expertParallel, scheme, layers, checkpointTensors };
  return {
    layout,
    layoutDigest: digestLayout(family.modelTypes[0] ?? modelType, layout),
    mappingDigest: digestMapping(layout),
    source: sourceOf(used.tensors, table.files),
    sourceDigest: digestFiles(table.files),
    skipped: match.skipped,
    warnings: [...table.warnings, ...quantizationNotApplied(config, table.tensors)],
  };
}

interface Settings {
  tensorParallelSize: number;
  expertParallel: boolean;
  recipe: Recipe;
  ignored: ReadonlySet<string>;
  roundTo: SourceDType | null;
  /** What the config says that values are computed in. */
  configDType: SourceDType;
  /** Index in Layout.checkpointTensors. */
  indexOf: (tensor: CheckpointTensor) => number;
}

/** Numbers checkpoint tensors in the order of first use. */
function numberTensors() {
  const numbers = new Map<CheckpointTensor, number>();
  const tensors: CheckpointTensor[] = [];
  const indexOf = (tensor: CheckpointTensor): number => {
    const known = numbers.get(tensor);
    if (known !== undefined) return known;
    numbers.set(tensor, tensors.length);
    return tensors.push(tensor) - 1;
  };
  return { tensors, indexOf };
}

function planLayer({ name, tensors }: MatchedLayer, settings: Settings): PlanLayer {
  const kernelTensors: KernelTensor[] = [];
  for (const matched of tensors) {
    if (matched.spec.derived !== undefined) {
      kernelTensors.push(derivedTensor(matched, tensors, kernelTensors, settings));
      continue;
    }
    const kernel = kernelTensor(matched, settings);
    kernelTensors.push(kernel);
    if (isKept(matched, settings)) kernelTensors.push(...keptScales(kernel, matched, settings));
  }
  return { name, kernelTensors };
}

function kernelTensor(matched: MatchedTensor, settings: Settings): KernelTensor {
  const { spec } = matched;
  if (spec.presence === "attention_scale") return attentionScale(matched, settings);
  const ranks = settings.tensorParallelSize;
  const byRank = spec.experts !== undefined && settings.expertParallel;
  if (!byRank) for (const part of matched.parts) checkDivides(part, ranks);
  const { scheme, dtype, roundTo } = valuesOf(matched, settings);
  const padTo = spec.experts === undefined ? 1 : expertsPadTo(scheme);
  const parts = matched.parts.map((part) => partOf(part, { isWhole: byRank, padTo }, settings));
  const cuts = parts.map((part) => cutPart(part, 0, ranks));
  const rows = cuts.reduce((sum, cut) => sum + cut.rows + cut.zeroRows, 0);
  const cols = cuts.reduce((most, cut) => Math.max(most, cut.cols + cut.zeroCols), 1);
  const isVector = matched.parts[0]?.tensors[0]?.shape.length === 1;
  const { scaleSuffix, scaleShape } = SCHEMES[scheme];
  const shapeOfScales = scaleShape(rows, cols, spec.experts !== undefined);
  return {
    ...AS_IT_IS,
    name: spec.name,
    dtype,
    shape: isVector ? [rows] : [rows, cols],
    rows,
    cols,
    parts,
    experts: spec.experts === undefined ? null : { count: spec.experts, byRank },
    scheme,
    scale: scaleSuffix === null ? null : { name: spec.name + scaleSuffix, shape: shapeOfScales },
    roundTo,
  };
}

/** What becomes of a tensor's values: quantized, held in a dtype, or codes that stay. */
function valuesOf(
  matched: MatchedTensor,
  settings: Settings,
): { scheme: Scheme; dtype: DType; roundTo: SourceDType | null } {
  const { spec, dtype: stored } = matched;
  const isLeft = isIgnored(matched, settings.ignored);
  if (stored === null) throw new LayercastError("internal", `${spec.name} has no parts and no value.`);
  // What goes straight to F32 is not rounded to anything first; what is rounded from is no part of the layout.
  if (spec.straightToF32 === true) return { scheme: "none", dtype: "F32", roundTo: null };
  if (isKept(matched, settings)) return { scheme: "none", dtype: "F8_E4M3", roundTo: null };
  if (stored === "F8_E4M3" && settings.roundTo === null) throw needsDType(matched);
  const { recipe } = settings;
  const held = settings.roundTo ?? (stored as SourceDType);
  const scheme = recipe === "as-stored" || !spec.quantized || isLeft ? "none" : recipe;
  // roundTo also where the checkpoint has this dtype already: what it is rounded from must not be part of the layout.
  return { scheme, dtype: scheme === "none" ? held : "F8_E4M3", roundTo: held };
}

/** Codes that stay what they are. */
function isKept({ dtype }: MatchedTensor, { recipe }: Settings): boolean {
  return recipe === "as-stored" && dtype === "F8_E4M3";
}

/** A scalar that goes straight to F32, whatever the recipe and the dtype say. */
function attentionScale({ spec, parts }: MatchedTensor, settings: Settings): KernelTensor {
  return {
    ...AS_IT_IS,
    name: spec.name,
    dtype: "F32",
    shape: [],
    rows: 1,
    cols: 1,
    parts: parts.map((part) => partOf(part, UNPADDED, settings)),
    constant: parts.length === 0 ? 1 : null,
    mustBePositive: true,
    phase: "finalize",
  };
}

/** Made at finalize from another kernel tensor of the layer, in the dtype that one had before it was quantized. */
function derivedTensor(
  { spec }: MatchedTensor,
  matched: readonly MatchedTensor[],
  kernelTensors: readonly KernelTensor[],
  settings: Settings,
): KernelTensor {
  const { derived } = spec;
  const from = kernelTensors.find(({ name }) => name === derived?.from);
  const fromMatched = matched.find((one) => one.spec.name === derived?.from);
  if (derived === undefined || from === undefined || fromMatched === undefined)
    throw new LayercastError("internal", `${spec.name} is made of ${derived?.from}, which is not in its layer.`);
  const { headRows, firstRow, rows, cols, transposed } = derived;
  const heads = from.rows / headRows;
  const kept = isKept(fromMatched, settings) ? scaledBy(fromMatched) : null;
  const { scheme, scale } = kept ?? { scheme: from.scheme, scale: from.scale?.name ?? null };
  return {
    ...AS_IT_IS,
    name: spec.name,
    // Codes that are kept never were anything else.
    dtype: from.roundTo ?? settings.roundTo ?? settings.configDType,
    shape: transposed ? [heads, cols, rows] : [heads, rows, cols],
    rows,
    cols,
    parts: [],
    derived: { from: from.name, scheme, scale, heads, headRows, firstRow, transposed },
    phase: "finalize",
  };
}

/** A tensor that is loaded as it is; the others say what is different about them. */
const AS_IT_IS = {
  experts: null,
  derived: null,
  scheme: "none",
  scale: null,
  roundTo: null,
  constant: null,
  mustBePositive: false,
  mustAgree: false,
  phase: "layer",
} satisfies Partial<KernelTensor>;

/** `isWhole`: no rank cuts it. `padTo`: as in Part. */
type CutSettings = Pick<Part, "padTo"> & { isWhole: boolean };

const UNPADDED: CutSettings = { isWhole: false, padTo: 1 };

function partOf(
  { spec, source, tensors, scales }: MatchedPart,
  { isWhole, padTo }: CutSettings,
  settings: Settings,
): Part {
  const { recipe, indexOf } = settings;
  const { rows, cols } = spec;
  const rowStride = source.view?.rowStride ?? cols;
  const colStride = source.view?.colStride ?? 1;
  const first = source.view?.first ?? 0;
  const isStacked = tensors.length > 1 && tensors[0] === tensors[1];
  const expertStride = isStacked ? (source.view?.expertStride ?? rows * cols) : 0;
  const codes = recipe === "as-stored" || scales === null ? undefined : tensors[0];
  return {
    tensors: tensors.map(indexOf),
    firsts: tensors.map((_, matrix) => first + matrix * expertStride),
    rows,
    cols,
    rowStride,
    colStride,
    rule: isWhole ? { kind: "replicate" } : spec.rule,
    padTo,
    scales:
      codes === undefined || scales === null
        ? null
        : dequantizing(scales, codes, originInMatrix(source, codes), indexOf),
  };
}

function checkDivides({ spec, tensors }: MatchedPart, ranks: number): void {
  const indivisible = indivisibleSize(spec, ranks);
  if (indivisible === null) return;
  const { field, size } = indivisible;
  const tensor = tensors[0]?.name;
  throw new LayercastError(
    "indivisible",
    `${tensor} cannot be split over ${countOf(ranks, "rank")}: ${field} is ${size}, which does not divide by ${ranks}` +
      `${spec.rule.kind === "kv_heads" ? `, nor ${ranks} by it` : ""}. Use another tensor-parallel size.`,
    { tensor, field, size, tensor_parallel_size: ranks },
  );
}

function needsDType({ spec, parts }: MatchedTensor): LayercastError {
  const tensor = parts[0]?.tensors[0]?.name;
  return new LayercastError(
    "unsupported_dtype",
    `${tensor} of ${spec.name} is F8_E4M3. Submit it with dtype: bfloat16 to have its values, or with recipe: as-stored to ` +
      "keep its codes and scales.",
    { tensor, dtype: "F8_E4M3" },
  );
}

/** Whether the recipe's ignore patterns name the parts; they must name all of them or none. */
function isIgnored({ spec, parts }: MatchedTensor, ignored: ReadonlySet<string>): boolean {
  if (ignored.size === 0) return false;
  const names = [...new Set(parts.flatMap(({ tensors }) => tensors.map(({ name }) => name)))];
  const named = names.filter((name) => ignored.has(name));
  if (named.length > 0 && named.length < names.length) {
    const others = names.filter((name) => !ignored.has(name));
    throw new LayercastError(
      "invalid_request",
      `The ignore patterns name ${joinNames(named)} but not ${joinNames(others)}, which are parts of the same ${spec.name}. ` +
        "Name all of its parts or none.",
      { kernel_tensor: spec.name, ignored: named, not_ignored: others },
    );
  }
  return named.length > 0;
}

function sourceOf(tensors: readonly CheckpointTensor[], files: CheckpointFile[]): Source {
  return {
    files,
    file: tensors.map(({ file }) => file),
    offset: tensors.map(({ offset }) => offset),
    // matchTensors has let only these through.
    dtype: tensors.map(({ dtype }) => dtype as StoredDType),
  };
}

function digestFiles(files: readonly CheckpointFile[]): string {
  const states = files.map(({ path, sizeBytes, mtimeNs, inode, headerDigest }) => [
    path,
    sizeBytes,
    mtimeNs,
    inode,
    headerDigest,
  ]);
  return createHash("sha256").update(JSON.stringify(states)).digest("hex");
}
