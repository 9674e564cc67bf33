// Finds, for every tensor that the model's family names, the checkpoint tensor that gives it, and accounts for every
// checkpoint tensor: used, skipped by a rule, or an error. Names, shapes and dtypes are checked here; nothing is cut yet.

import { quoted } from "../checkpoint/strict-json.js";
import { isSourceDType, SOURCE_DTYPES, type SourceDType } from "../contract/dtype.js";
import { LayercastError } from "../contract/errors.js";
import type { CheckpointTable, CheckpointTensor } from "../contract/plan.js";
import type { Dimensions, LayerSpec, PartSpec, TensorSpec } from "./architectures/family.js";
import { skipReason } from "./architectures/index.js";

export interface MatchedTensor {
  spec: TensorSpec;
  /** In the order of `spec.parts`; empty for an attention scale that the checkpoint does not give. */
  parts: CheckpointTensor[];
  /** Common to all parts; null without parts. */
  dtype: SourceDType | null;
}

export interface MatchedLayer {
  name: string;
  tensors: MatchedTensor[];
}

export interface Match {
  layers: MatchedLayer[];
  skipped: { name: string; reason: string }[];
}

export function matchTensors(layers: Iterable<LayerSpec>, model: Dimensions, table: CheckpointTable): Match {
  const missing: string[] = [];
  const used = new Set<string>();
  const matched: MatchedLayer[] = [];
  for (const layer of layers) {
    const tensors = layer.tensors.map((spec) => matchTensor(spec, table, used, missing));
    matched.push({ name: layer.name, tensors: tensors.filter((tensor) => tensor !== null) });
    // A config may promise any number of layers; the checkpoint bounds how many can be there.
    if (missing.length > MISSING_ENOUGH) break;
  }
  if (missing.length > 0) throw tensorMissing(missing, table);
  return { layers: matched, skipped: skipTheRest(model, table, used) };
}

function matchTensor(
  spec: TensorSpec,
  table: CheckpointTable,
  used: Set<string>,
  missing: string[],
): MatchedTensor | null {
  const found = spec.parts.map(({ names }) => names.find((name) => table.tensors.has(name)));
  if (found.every((name) => name === undefined) && spec.presence !== "required")
    return spec.presence === "attention_scale" ? { spec, parts: [], dtype: null } : null;
  const parts: CheckpointTensor[] = [];
  spec.parts.forEach((part, index) => {
    const tensor = table.tensors.get(found[index] ?? "");
    if (tensor === undefined) {
      missing.push(part.names[0] ?? spec.name);
      return;
    }
    used.add(tensor.name);
    checkShape(tensor, part);
    parts.push(tensor);
  });
  return { spec, parts, dtype: commonDType(parts, spec) };
}

function checkShape(tensor: CheckpointTensor, part: PartSpec): void {
  const found = tensor.shape;
  if (part.shapes.some((shape) => shape.length === found.length && shape.every((size, axis) => size === found[axis])))
    return;
  const expected = part.shapes.map((shape) => `[${shape.join(", ")}]`).join(" or ");
  throw new LayercastError(
    "shape_mismatch",
    `${tensor.name} has shape [${found.slice(0, 8).join(", ")}]; config.json makes it ${expected}. ` +
      "Check that the checkpoint and its config.json belong together.",
    { tensor: tensor.name, expected: part.shapes, found: found.slice(0, 8) },
  );
}

function commonDType(parts: readonly CheckpointTensor[], spec: TensorSpec): SourceDType | null {
  let common: SourceDType | null = null;
  for (const { name, dtype } of parts) {
    if (!isSourceDType(dtype))
      throw new LayercastError(
        "unsupported_dtype",
        `${name} is ${dtype}; checkpoint tensors that are loaded must be ${SOURCE_DTYPES.join(", ")}. ` +
          "Submit the checkpoint as it was before quantizing.",
        { tensor: name, dtype },
      );
    if (common !== null && common !== dtype) {
      const dtypes = Object.fromEntries(parts.map((part) => [part.name, part.dtype]));
      const listed = parts.map((part) => `${part.name} ${part.dtype}`).join(", ");
      throw new LayercastError(
        "unsupported_dtype",
        `The parts of ${spec.name} have different dtypes: ${listed}. Write them all in one dtype.`,
        { tensor: name, dtypes },
      );
    }
    common = dtype;
  }
  return common;
}

function skipTheRest(model: Dimensions, table: CheckpointTable, used: ReadonlySet<string>): Match["skipped"] {
  const skipped: Match["skipped"] = [];
  const unexpected: string[] = [];
  for (const name of table.tensors.keys()) {
    if (used.has(name)) continue;
    const reason = skipReason(name, model);
    if (reason === null) unexpected.push(name);
    else skipped.push({ name, reason });
  }
  if (unexpected.length > 0) throw tensorUnexpected(unexpected, model, table);
  return skipped;
}

function tensorMissing(missing: readonly string[], table: CheckpointTable): LayercastError {
  const count = missing.length > MISSING_ENOUGH ? `more than ${MISSING_ENOUGH}` : `${missing.length}`;
  return new LayercastError(
    "tensor_missing",
    `${table.directory} lacks ${count} of the tensors that its config.json demands: ${listed(missing)}. ` +
      "Check that the checkpoint is complete and that config.json belongs to it.",
    { tensors: missing.slice(0, NAMED_IN_DETAILS), count: missing.length },
  );
}

function tensorUnexpected(unexpected: readonly string[], model: Dimensions, table: CheckpointTable): LayercastError {
  return new LayercastError(
    "tensor_unexpected",
    `${table.directory} has ${unexpected.length} tensors that a ${model.modelType} model with its config.json has no ` +
      `place for, or that others already give: ${listed(unexpected)}. Remove them, or correct config.json.`,
    { tensors: unexpected.slice(0, NAMED_IN_DETAILS), count: unexpected.length },
  );
}

function listed(names: readonly string[]): string {
  const shown = names.slice(0, NAMED_IN_SENTENCE).map((name) => (PLAIN.test(name) ? name : quoted(name)));
  const more = names.length - shown.length;
  return more > 0 ? `${shown.join(", ")} and ${more} more` : shown.join(", ");
}

const MISSING_ENOUGH = 1000;
const NAMED_IN_SENTENCE = 10;
const NAMED_IN_DETAILS = 100;
const PLAIN = /^[\w.-]{1,200}$/;
