// The checkpoint of a push before its first byte: a table of the tensors that the trainer says it will send, or of those that the
// model's config demands. They lie one behind the other in one file, which is none: buckets bring their bytes.

import type { ModelConfig } from "../checkpoint/model-config.js";
import { quoted } from "../checkpoint/strict-json.js";
import { unwrapNames } from "../checkpoint/tensor-names.js";
import { elementCount, FORMAT_DTYPE_BITS } from "../contract/dtype.js";
import { LayercastError } from "../contract/errors.js";
import type { CheckpointFile, CheckpointTable, CheckpointTensor } from "../contract/plan.js";
import type { DeclaredTensor } from "../contract/push.js";
import type { Family, PartSource, TensorSpec } from "./architectures/family.js";
import { familyOf, layersOf, readDimensions, skipReason } from "./architectures/index.js";
import { dtypeOfConfig, quantizationOf } from "./quantization-config.js";
import { INPUT_SCALE_REASON, isInputScaleName } from "./stored-scales.js";

/** `tensors`: what will be sent; null: what the config demands, in the dtype that it names. */
export function declaredTable(config: ModelConfig, tensors: readonly DeclaredTensor[] | null): CheckpointTable {
  const directory = tensors === null ? config.file : "source.tensors";
  const given = [...(tensors ?? demandedTensors(config))];
  requireNamedOnce(given);
  const names = unwrapNames(
    given.map(({ name }) => name),
    directory,
  );
  const declared = given
    .map((tensor) => ({ ...tensor, name: names.plainOf(tensor.name) }))
    .sort((a, b) => (a.name < b.name ? -1 : 1));
  const placed = new Map<string, CheckpointTensor>();
  let end = 0;
  for (const { name, dtype, shape } of declared) {
    const offset = Math.ceil(end / ALIGNMENT) * ALIGNMENT;
    placed.set(name, { name, dtype, shape: [...shape], file: 0, offset });
    end = offset + Math.ceil((elementCount(shape) * FORMAT_DTYPE_BITS[dtype]) / 8);
  }
  if (!Number.isSafeInteger(end))
    throw new LayercastError("invalid_request", `The tensors of ${directory} are of 2^53 bytes or more. Correct it.`);
  const warnings = names.warning === null ? [] : [names.warning];
  return { directory, files: [{ ...NO_FILE, sizeBytes: end }], tensors: placed, absent: new Map(), warnings };
}

/** The family's rule by which a tensor is let through though no kernel tensor needs it; null: there is none. */
export function skipRuleOf(config: ModelConfig): (name: string) => string | null {
  const family = familyOf(config);
  const model = readDimensions(config, family);
  return (name) => (isInputScaleName(name) ? INPUT_SCALE_REASON : skipReason(name, family, model));
}

/** Every tensor that must be there, as checkpoints of the family usually have it. */
function* demandedTensors(config: ModelConfig): Generator<DeclaredTensor> {
  if (isQuantized(config)) throw mustBeListed(config);
  const family: Family = familyOf(config);
  const model = readDimensions(config, family);
  const dtype = dtypeOfConfig(model.config) ?? dtypeOfConfig(config) ?? "BF16";
  const seen = new Set<string>();
  for (const { tensors } of layersOf(family, model)) {
    for (const spec of tensors) {
      if (spec.presence !== "required") continue;
      for (const { name, shape } of tensorsOf(spec)) {
        if (seen.has(name)) continue; // parts may be windows of one tensor
        seen.add(name);
        if (seen.size > MAX_TENSORS) throw tooMany(config);
        yield { name, dtype: spec.straightToF32 === true ? "F32" : dtype, shape };
      }
    }
  }
}

function* tensorsOf({ parts, experts }: TensorSpec): Generator<{ name: string; shape: number[] }> {
  for (const { sources } of parts) {
    const [source] = sources;
    const shape = source?.shapes[0];
    if (source === undefined || shape === undefined) continue;
    for (const name of namesOf(source, experts ?? 1)) yield { name, shape: [...shape] };
  }
}

function namesOf({ name }: PartSource, experts: number): string[] {
  if (!name.includes("{expert}")) return [name];
  return Array.from({ length: experts }, (_, expert) => name.replace("{expert}", String(expert)));
}

/** Which tensors are codes, and what scales they have, no config says. */
function isQuantized({ fields }: ModelConfig): boolean {
  return quantizationOf(fields) !== null;
}

function mustBeListed({ file }: ModelConfig): LayercastError {
  return new LayercastError(
    "invalid_request",
    `${file} has a quantization_config, which does not say what will be sent: values, or codes and their scales. List the tensors in source.tensors.`,
    { field: "quantization_config" },
  );
}

function requireNamedOnce(tensors: readonly DeclaredTensor[]): void {
  const names = new Set<string>();
  for (const { name } of tensors) {
    if (names.has(name)) throw namedTwice(name);
    names.add(name);
  }
}

function namedTwice(name: string): LayercastError {
  return new LayercastError("invalid_request", `source.tensors names ${quoted(name)} twice; name each tensor once.`, {
    tensor: name,
  });
}

function tooMany({ file }: ModelConfig): LayercastError {
  return new LayercastError(
    "checkpoint_invalid",
    `${file} demands more than ${MAX_TENSORS} tensors. Correct it, or list them in source.tensors.`,
    { file },
  );
}

const ALIGNMENT = 8;
/** A few lines of config could have any number of them planned; the largest models have some 70,000. */
const MAX_TENSORS = 200_000;
const NO_FILE: CheckpointFile = { path: "push", sizeBytes: 0, mtimeNs: "0", inode: "0", headerDigest: "" };
