// What config.json says of a checkpoint's numbers. Of codes: that they are FP8 with scales of a kind that is known; the shapes
// of the scales say the rest (stored-scales.ts). Of values: the dtype that the model computes in.

import type { ModelConfig } from "../checkpoint/model-config.js";
import { shown } from "../checkpoint/strict-json.js";
import { REQUEST_DTYPES, type SourceDType } from "../contract/dtype.js";
import { LayercastError } from "../contract/errors.js";
import { SCALE_BLOCK } from "../contract/recipe.js";

/** Refuses a `quantization_config` that means other codes or scales; without one the tensors speak for themselves. */
export function checkQuantizationConfig({ file, fields }: ModelConfig): void {
  const quantization = quantizationOf(fields);
  if (quantization === null) return;
  const at: Place = { file, quantization };
  checkMethod(at);
  checkFormat(at);
  checkBlock(field(quantization, "weight_block_size"), "weight_block_size", file);
  checkGroups(at);
  checkAlgorithm(at);
  checkQuark(at);
}

/** The config's `quantization_config`; null where it says nothing: it is absent, null or an empty object. */
export function quantizationOf(fields: ModelConfig["fields"]): unknown {
  const quantization = field(fields, "quantization_config") ?? null;
  const isEmpty = typeof quantization === "object" && quantization !== null && Object.keys(quantization).length === 0;
  return isEmpty ? null : quantization;
}

/** What the config says that the model computes in; null: nothing, or no dtype that is known. */
export function dtypeOfConfig({ fields }: ModelConfig): SourceDType | null {
  const name = field(fields, "dtype") ?? field(fields, "torch_dtype");
  const known: Record<string, SourceDType | null> = REQUEST_DTYPES;
  return typeof name === "string" && Object.hasOwn(known, name) ? (known[name] ?? null) : null;
}

interface Place {
  file: string;
  quantization: unknown;
}

/** ModelOpt's own file, which some copy into the config, names no method but an algorithm. */
function checkMethod({ file, quantization }: Place): void {
  const method = field(quantization, "quant_method");
  if (method === undefined && algorithmOf(quantization) !== undefined) return;
  if (METHODS.some((known) => isMethod(method, known))) return;
  const known = `${METHODS.slice(0, -1).join(", ")} and ${METHODS.at(-1)}`;
  throw refused(file, `quant_method ${shown(method)}; ${known} are known`);
}

/** Some write it in capitals, some with the other dash. */
function isMethod(method: unknown, known: (typeof METHODS)[number]): boolean {
  return typeof method === "string" && method.toLowerCase().replaceAll("_", "-") === known.replaceAll("_", "-");
}

/** `fmt` of quant_method fp8. */
function checkFormat({ file, quantization }: Place): void {
  const format = field(quantization, "fmt") ?? null;
  const isKnown = format === null || (typeof format === "string" && E4M3.test(format));
  if (!isKnown) throw refused(file, `fmt ${shown(format)}; e4m3 is known`);
}

/** Groups of modules, each with a description of its weights' codes, as compressed-tensors and ModelOpt write them. */
function checkGroups({ file, quantization }: Place): void {
  for (const group of valuesOf(field(quantization, "config_groups"))) {
    const weights = field(group, "weights") ?? null;
    if (weights === null) continue;
    const bits = field(weights, "num_bits");
    const type = field(weights, "type");
    if (bits !== 8 || type !== "float")
      throw refused(file, `weights of num_bits ${shown(bits)} and type ${shown(type)}; 8 and float are known`);
    checkBlock(field(weights, "block_structure"), "block_structure", file);
  }
}

/** What ModelOpt calls its kinds of codes: `NVFP4`, `MXFP8` and mixtures are others. One of its configs must say which. */
function checkAlgorithm({ file, quantization }: Place): void {
  const algorithm = algorithmOf(quantization);
  const isNeeded =
    isMethod(field(quantization, "quant_method"), "modelopt") &&
    valuesOf(field(quantization, "config_groups")).length === 0;
  if (algorithm === undefined ? !isNeeded : (ALGORITHMS as readonly unknown[]).includes(algorithm)) return;
  throw refused(file, `quant_algo ${shown(algorithm)}; ${ALGORITHMS.join(" and ")} are known`);
}

function algorithmOf(quantization: unknown): unknown {
  return field(quantization, "quant_algo") ?? field(field(quantization, "quantization"), "quant_algo") ?? undefined;
}

/** Quark describes the weights of all layers, then those of some layers by name and by type; in one or in several steps. */
function checkQuark({ file, quantization }: Place): void {
  const all = field(quantization, "global_quant_config");
  const some = ["layer_quant_config", "layer_type_quant_config"].map((name) => field(quantization, name));
  for (const description of [all, ...some.flatMap(valuesOf)]) {
    const weight = field(description, "weight") ?? null;
    for (const step of Array.isArray(weight) ? weight : [weight]) {
      const dtype = field(step, "dtype") ?? null;
      const isKnown = dtype === null || (typeof dtype === "string" && QUARK_E4M3.test(dtype));
      if (!isKnown) throw refused(file, `weights of dtype ${shown(dtype)}; fp8_e4m3 is known`);
    }
  }
}

function checkBlock(size: unknown, name: string, file: string): void {
  if (size === undefined || size === null) return;
  const isKnown = Array.isArray(size) && size.length === 2 && size.every((side) => side === SCALE_BLOCK);
  if (!isKnown) throw refused(file, `${name} ${shown(size)}; blocks of [${SCALE_BLOCK}, ${SCALE_BLOCK}] are known`);
}

function valuesOf(record: unknown): unknown[] {
  return typeof record === "object" && record !== null ? Object.values(record) : [];
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

const METHODS = ["fp8", "compressed-tensors", "modelopt", "fbgemm_fp8", "quark"] as const;
const ALGORITHMS = ["FP8", "FP8_PER_CHANNEL_PER_TOKEN"] as const;
const E4M3 = /^(?:float8_|fp8_)?e4m3(?:fn)?$/i;
const QUARK_E4M3 = /^fp8_e4m3$/i;
