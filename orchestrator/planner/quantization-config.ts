// What config.json says of a checkpoint's numbers. Of codes: that they are FP8 with scales of a kind that is known; the shapes
// of the scales say the rest (stored-scales.ts). Of values: the dtype that the model computes in.

import type { ModelConfig } from "../checkpoint/model-config.js";
import { shown } from "../checkpoint/strict-json.js";
import { REQUEST_DTYPES, type SourceDType } from "../contract/dtype.js";
import { LayercastError } from "../contract/errors.js";
import { SCALE_BLOCK } from "../contract/recipe.js";

/** Refuses a `quantization_config` that means other codes or scales; without one the tensors speak for themselves. */
export function checkQuantizationConfig({ file, fields }: ModelConfig): void {
  const quantization = field(fields, "quantization_config") ?? null;
  if (quantization === null) return;
  const method = field(quantization, "quant_method");
  if (method === "fp8") checkBlock(field(quantization, "weight_block_size"), "weight_block_size", file);
  else if (method === "compressed-tensors") checkGroups(field(quantization, "config_groups"), file);
  else throw refused(file, `quant_method ${shown(method)}; fp8 and compressed-tensors are known`);
}

/** What the config says that the model computes in; null: nothing, or no dtype that is known. */
export function dtypeOfConfig({ fields }: ModelConfig): SourceDType | null {
  const name = field(fields, "dtype") ?? field(fields, "torch_dtype");
  const known: Record<string, SourceDType | null> = REQUEST_DTYPES;
  return typeof name === "string" && Object.hasOwn(known, name) ? (known[name] ?? null) : null;
}

/** Groups of modules, each with a description of its weights' codes. */
function checkGroups(groups: unknown, file: string): void {
  if (typeof groups !== "object" || groups === null) return;
  for (const group of Object.values(groups)) {
    const weights = field(group, "weights") ?? null;
    if (weights === null) continue;
    const bits = field(weights, "num_bits");
    const type = field(weights, "type");
    if (bits !== 8 || type !== "float")
      throw refused(file, `weights of num_bits ${shown(bits)} and type ${shown(type)}; 8 and float are known`);
    checkBlock(field(weights, "block_structure"), "block_structure", file);
  }
}

function checkBlock(size: unknown, name: string, file: string): void {
  if (size === undefined || size === null) return;
  const isKnown = Array.isArray(size) && size.length === 2 && size.every((side) => side === SCALE_BLOCK);
  if (!isKnown) throw refused(file, `${name} ${shown(size)}; blocks of [${SCALE_BLOCK}, ${SCALE_BLOCK}] are known`);
}

function field(record: unknown, name: string): unknown {
  if (typeof record !== "object" || record === null || !Object.hasOwn(record, name)) return undefined;
  return (record as Record<string, unknown>)[name];
}

function refused(file: string, what: string): LayercastError {
  return new LayercastError(
    "unsupported_recipe",
    `The quantization_config of ${file} says ${what}. Submit the checkpoint as it was before quantizing.`,
    { file },
  );
}
