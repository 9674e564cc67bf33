// Finds, for every tensor that the model's family names, the checkpoint tensors that give it, and accounts for every
// checkpoint tensor: used, skipped by a rule, or an error. Names, shapes and dtypes are checked here; nothing is cut yet.

import { isSourceDType, SOURCE_DTYPES, type StoredDType } from "../contract/dtype.js";
import { LayercastError } from "../contract/errors.js";
import type { CheckpointTable, CheckpointTensor } from "../contract/plan.js";

import type { Dimensions, Family, LayerSpec, PartSource, PartSpec, TensorSpec } from "./architectures/family.js";
import { skipReason } from "./architectures/index.js";
import {
  findStoredScales,
  INPUT_SCALE_REASON,
  inputScaleName,
  isInputScaleName,
  LEFTOVER_INPUT_SCALE_REASON,
  type StoredScales,
  weightsOfInputScale,
} from "./stored-scales.js";
import { absentSources, tensorMissing, tensorUnexpected } from "./unmatched-tensors.js";

export interface MatchedPart {
  spec: PartSpec;
  source: PartSource;
  /** One, or one an expert: the same one again and again where it holds them all. */
  tensors: CheckpointTensor[];
  /** Where the tensors are FP8 codes. */
  scales: StoredScales | null;
}

export interface MatchedTensor {
  spec: TensorSpec;
  /** In the order of `spec.parts`; empty for a derived tensor, and for an attention scale that the checkpoint does not give. */
  parts: MatchedPart[];
  /** Common to all parts, F32 where values of different dtypes are rounded to one; null without parts. */
  dtype: StoredDType | null;
}

export interface MatchedLayer {
  name: string;
  tensors: MatchedTensor[];
}

export interface Match {
  layers: MatchedLayer[];
  skipped: { name: string; reason: string }[];
}

export interface MatchRequest {
  layers: Iterable<LayerSpec>;
  family: Family;
  model: Dimensions;
  table: CheckpointTable;
  /** Values are rounded to one dtype, so those of a kernel tensor may have different ones. */
  rounds: boolean;
  /** The scales of activations that lie beside FP8 codes are kept; else they are skipped. */
  keepInputScales: boolean;
}

export function matchTensors(request: MatchRequest): Match {
  const search: Search = { table: request.table, missing: new Set(), used: new Set(), notNeeded: new Map() };
  const matched: MatchedLayer[] = [];
  for (const layer of request.layers) {
    const tensors = layer.tensors.map((spec) => matchTensor(spec, search, request));
    matched.push({ name: layer.name, tensors });
    // A config may promise any number of layers; the checkpoint bounds how many can be there.
    if (search.missing.size > MISSING_ENOUGH) break;
  }
  if (search.missing.size > 0) throw tensorMissing([...search.missing], request);
  return { layers: matched, skipped: skipTheRest(request, search) };
}

interface Search {
  table: CheckpointTable;
  /** Names that had to be there. */
  missing: Set<string>;
  used: Set<string>;
  /** Known, but of no use to this recipe: name -> reason. */
  notNeeded: Map<string, string>;
}

function matchTensor(spec: TensorSpec, search: Search, { rounds, keepInputScales }: MatchRequest): MatchedTensor {
  if (spec.derived !== undefined) return { spec, parts: [], dtype: null };
  const sources = spec.parts.map((part) => chooseSource(part, spec, search.table));
  if (spec.presence === "attention_scale" && sources.every((source) => source === null)) {
    for (const name of absentSources(spec, search.table)) search.missing.add(name);
    return { spec: { ...spec, parts: [] }, parts: [], dtype: null };
  }
  const parts: MatchedPart[] = [];
  spec.parts.forEach((part, index) => {
    const source = sources[index] ?? part.sources[0];
    const tensors = source === undefined ? null : takeTensors(source, part, spec, search);
    if (source !== undefined && tensors !== null) parts.push({ spec: part, source, tensors, scales: null });
  });
  const dtype = commonDType(parts, spec, rounds);
  if (dtype === "F8_E4M3" && parts.length === spec.parts.length)
    for (const part of parts) takeScales(part, search, keepInputScales);
  return { spec, parts, dtype };
}

/** The first source whose tensor is there with a shape it allows; null when none is there at all. */
function chooseSource(part: PartSpec, spec: TensorSpec, table: CheckpointTable): PartSource | null {
  let present: CheckpointTensor | null = null;
  for (const source of part.sources) {
    const tensor = anyOf(source, spec, table);
    if (tensor === null || !holdsWhere(source, table)) continue;
    if (isAllowed(tensor.shape, source)) return source;
    present ??= tensor;
  }
  if (present !== null) throw shapeMismatch(present, part);
  return null;
}

/** A tensor that the source names: of one an expert, the first that is there. */
function anyOf(source: PartSource, { experts }: TensorSpec, table: CheckpointTable): CheckpointTensor | null {
  const [before, after] = experts === undefined ? [] : splitAtExpert(source);
  if (after === undefined) return table.tensors.get(source.name) ?? null;
  // A config may promise any number of experts too.
  const most = Math.min(experts ?? 1, table.tensors.size);
  for (let expert = 0; expert < most; expert++) {
    const tensor = table.tensors.get(`${before}${expert}${after}`);
    if (tensor !== undefined) return tensor;
  }
  return null;
}

function holdsWhere({ where }: PartSource, table: CheckpointTable): boolean {
  return where === undefined || sameShape(table.tensors.get(where.name)?.shape ?? null, where.shape);
}

/** One tensor a matrix, each of a shape that the source allows; null when some are missing, which are then named. */
function takeTensors(source: PartSource, part: PartSpec, spec: TensorSpec, search: Search): CheckpointTensor[] | null {
  const count = spec.experts ?? 1;
  const [before, after] = spec.experts === undefined ? [] : splitAtExpert(source);
  if (after === undefined) {
    const tensor = takeTensor(source.name, source, part, search);
    return tensor === null ? null : new Array<CheckpointTensor>(count).fill(tensor);
  }
  const tensors: CheckpointTensor[] = [];
  for (let expert = 0; expert < count && search.missing.size <= MISSING_ENOUGH; expert++) {
    const tensor = takeTensor(`${before}${expert}${after}`, source, part, search);
    if (tensor !== null) tensors.push(tensor);
  }
  return tensors.length === count ? tensors : null;
}

function takeTensor(name: string, source: PartSource, part: PartSpec, search: Search): CheckpointTensor | null {
  const tensor = search.table.tensors.get(name);
  if (tensor === undefined) {
    search.missing.add(name);
    return null;
  }
  if (!isAllowed(tensor.shape, source)) throw shapeMismatch(tensor, part);
  search.used.add(name);
  return tensor;
}

function takeScales(part: MatchedPart, search: Search, keepInputScales: boolean): void {
  part.scales = findStoredScales(part.tensors, search.table);
  for (const { name } of part.scales.tensors) search.used.add(name);
  if (part.scales.inputs === null && keepInputScales) requireNoneAbsent(part.tensors, search);
  for (const { name } of part.scales.inputs?.tensors ?? []) {
    if (keepInputScales) search.used.add(name);
    else search.notNeeded.set(name, INPUT_SCALE_REASON);
  }
}

/** A scale that the index names is not left out in silence. */
function requireNoneAbsent(codes: readonly CheckpointTensor[], { table, missing }: Search): void {
  const names = codes.map(({ name }) => inputScaleName(name));
  for (const name of names) if (table.absent.has(name)) missing.add(name);
}

function splitAtExpert({ name }: PartSource): [before: string, after: string | undefined] {
  const [before = "", after] = name.split("{expert}");
  return [before, after];
}

function isAllowed(shape: readonly number[], source: PartSource): boolean {
  return source.shapes.some((allowed) => sameShape(shape, allowed));
}

function sameShape(found: readonly number[] | null, shape: readonly number[]): boolean {
  return found !== null && shape.length === found.length && shape.every((size, axis) => size === found[axis]);
}

function shapeMismatch(tensor: CheckpointTensor, part: PartSpec): LayercastError {
  const found = tensor.shape;
  const naming = part.sources.filter((source) => {
    const [before, after = ""] = splitAtExpert(source);
    return tensor.name.startsWith(before) && tensor.name.endsWith(after);
  });
  const shapes = naming.flatMap((source) => source.shapes);
  const expected = shapes.map((shape) => `[${shape.join(", ")}]`).join(" or ");
  return new LayercastError(
    "shape_mismatch",
    `${tensor.name} has shape [${found.slice(0, 8).join(", ")}]; the config makes it ${expected}. ` +
      "Check that the weights and the config belong together.",
    { tensor: tensor.name, expected: shapes, found: found.slice(0, 8) },
  );
}

function commonDType(parts: readonly MatchedPart[], spec: TensorSpec, rounds: boolean): StoredDType | null {
  let common: StoredDType | null = null;
  for (const { tensors } of parts) {
    for (const { name, dtype } of tensors) {
      const mayBeCodes = spec.quantized || spec.mayBeCodes === true;
      if (!isSourceDType(dtype) && !(dtype === "F8_E4M3" && mayBeCodes)) throw unsupportedDType(name, dtype);
      if (common === null || common === dtype) common = dtype;
      else if (rounds && isSourceDType(common) && isSourceDType(dtype)) common = "F32";
      else throw differentDTypes(parts, spec, name);
    }
  }
  return common;
}

function unsupportedDType(name: string, dtype: string): LayercastError {
  const isOtherFp8 = dtype.startsWith("F8_E4M3") || dtype.startsWith("F8_E5M2");
  return new LayercastError(
    "unsupported_dtype",
    `${name} is ${dtype}; checkpoint tensors that are loaded must be ${SOURCE_DTYPES.join(", ")}, or F8_E4M3 in linear ` +
      `weights and the head. Submit the checkpoint as it was before quantizing${isOtherFp8 ? ", or quantized to F8_E4M3" : ""}.`,
    { tensor: name, dtype },
  );
}

function differentDTypes(parts: readonly MatchedPart[], spec: TensorSpec, tensor: string): LayercastError {
  const dtypes: Record<string, string> = {};
  // Of many experts the first of each dtype says enough.
  for (const { tensors } of parts) {
    for (const one of tensors) {
      const isNew = tensors.length === 1 || !Object.values(dtypes).includes(one.dtype);
      if (isNew) dtypes[one.name] = one.dtype;
    }
  }
  const listed = Object.entries(dtypes).map(([name, dtype]) => `${name} ${dtype}`);
  const areValues = Object.values(dtypes).every(isSourceDType);
  return new LayercastError(
    "unsupported_dtype",
    `The parts of ${spec.name} have different dtypes: ${listed.join(", ")}. Write them all in one dtype` +
      `${areValues ? ", or submit them with dtype: bfloat16 to have all of them rounded to it" : ""}.`,
    { tensor, dtypes },
  );
}

function skipTheRest({ family, model, table }: MatchRequest, search: Search): Match["skipped"] {
  const { used, notNeeded } = search;
  const skipped: Match["skipped"] = [];
  const unexpected: string[] = [];
  for (const name of table.tensors.keys()) {
    if (used.has(name)) continue;
    const reason = notNeeded.get(name) ?? leftoverReason(name, search) ?? skipReason(name, family, model);
    if (reason === null) unexpected.push(name);
    else skipped.push({ name, reason });
  }
  if (unexpected.length > 0) throw tensorUnexpected(unexpected, model, table);
  return skipped;
}

/** Beside weights that were made values again, exporters leave the scales of activations. */
function leftoverReason(name: string, { used, table }: Search): string | null {
  if (!isInputScaleName(name)) return null;
  const isBesideValues = weightsOfInputScale(name).some(
    (weights) => used.has(weights) && table.tensors.get(weights)?.dtype !== "F8_E4M3",
  );
  return isBesideValues ? LEFTOVER_INPUT_SCALE_REASON : null;
}

/** Then no more are looked for. */
const MISSING_ENOUGH = 1000;
