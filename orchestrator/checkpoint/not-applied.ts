// What a checkpoint has beside its weights or in its config that is to be applied to them, and is not: each is said by name, for
// else a reader takes what was loaded for the weights with it.

import { joinNames } from "../contract/join-names.js";
import type { CheckpointTensor, SourceWarning } from "../contract/plan.js";
import type { ModelConfig } from "./model-config.js";
import { quoted, shown } from "./strict-json.js";

/** `entries`: names in the checkpoint's directory; `read`: those of its files whose tensors are loaded. */
export function filesNotApplied(
  entries: Iterable<string>,
  read: readonly string[],
  tensors: ReadonlyMap<string, CheckpointTensor>,
): SourceWarning[] {
  const beside = [...entries].filter((name) => !read.includes(name)).sort();
  const quantized = holdsCodes(tensors);
  return [
    ...adapterNotApplied(beside.filter(isAdapterFile)),
    ...(quantized ? [] : quantizerFilesNotApplied(beside.filter((name) => QUANTIZER_FILES.includes(name)))),
    ...cacheScalesNotApplied(beside.filter((name) => name === CACHE_SCALES_FILE)),
  ];
}

/** Fields of the config that describe codes, over tensors of which none is one. */
export function quantizationNotApplied(
  { file, fields }: ModelConfig,
  tensors: ReadonlyMap<string, CheckpointTensor>,
): SourceWarning[] {
  const named = quantizationFields(fields);
  if (named.length === 0 || holdsCodes(tensors)) return [];
  const words = named.map(({ field, value }) => `${field}${methodWords(value)}`);
  return [
    {
      code: "quantization_not_applied",
      message:
        `${file} has ${joinNames(words)}, which ${named.length === 1 ? "is" : "are"} not applied: no tensor holds FP8 codes, so the ` +
        "weights are read as the values that they are. Give a recipe to quantize them, or submit the quantized checkpoint.",
      details: { file, fields: named.map(({ field }) => field) },
    },
  ];
}

/** Whether any tensor is FP8 codes, and so has scales. */
export function holdsCodes(tensors: ReadonlyMap<string, CheckpointTensor>): boolean {
  for (const { dtype } of tensors.values()) if (dtype === "F8_E4M3") return true;
  return false;
}

export function isAdapterFile(name: string): boolean {
  return ADAPTER_FILE.test(name);
}

function adapterNotApplied(files: readonly string[]): SourceWarning[] {
  if (files.length === 0) return [];
  return [
    {
      code: "adapter_not_applied",
      message:
        `${joinNames(files.map(quoted), FILES_NAMED)} beside the checkpoint ${files.length === 1 ? "belongs" : "belong"} to an adapter, ` +
        "which is not applied: the base model's weights alone are loaded. To load the adapter's too, merge it (merge_and_unload) and " +
        "submit the result.",
      details: { files: files.slice(0, FILES_IN_DETAILS) },
    },
  ];
}

function quantizerFilesNotApplied(files: readonly string[]): SourceWarning[] {
  return files.map((name) => ({
    code: "quantization_not_applied",
    message:
      `${quoted(name)} beside the checkpoint is not applied: no tensor holds FP8 codes, so the weights are read as the values that ` +
      "they are. Give a recipe to quantize them, or submit the quantized checkpoint.",
    details: { files: [name] },
  }));
}

function cacheScalesNotApplied(files: readonly string[]): SourceWarning[] {
  return files.map((name) => ({
    code: "cache_scales_not_applied",
    message: `${quoted(name)} beside the checkpoint is not applied: scales of an FP8 cache are read from tensors alone. Save them in the checkpoint.`,
    details: { files: [name] },
  }));
}

/** Those that say something; a config for text and images has the field in its text model's part too. */
function quantizationFields(fields: ModelConfig["fields"]): { field: string; value: unknown }[] {
  const places = [
    { prefix: "", record: fields as unknown },
    { prefix: "text_config.", record: own(fields, "text_config") },
  ];
  return places.flatMap(({ prefix, record }) =>
    QUANTIZATION_FIELDS.map((name) => ({ field: prefix + name, value: own(record, name) })).filter(
      ({ value }) => !isEmpty(value),
    ),
  );
}

function methodWords(value: unknown): string {
  const method = own(value, "quant_method") ?? own(value, "quant_algo") ?? null;
  return method === null ? "" : ` (${shown(method)})`;
}

function own(record: unknown, name: string): unknown {
  if (typeof record !== "object" || record === null || !Object.hasOwn(record, name)) return undefined;
  return (record as Record<string, unknown>)[name];
}

function isEmpty(value: unknown): boolean {
  if (value === undefined || value === null) return true;
  return typeof value === "object" && Object.keys(value).length === 0;
}

/** How files of an adapter are named by PEFT, diffusers and MLX, before `.`, `_` or `-`. */
export const ADAPTER_NAMES = ["adapter", "adapters", "lora", "pytorch_lora_weights"];
const ADAPTER_FILE = new RegExp(
  `^(?:${ADAPTER_NAMES.join("|")})(?:[._-].*)?\\.(?:json|safetensors|bin|pth?|npz)$`,
  "i",
);
/** Of ModelOpt, AutoGPTQ and AutoAWQ. */
const QUANTIZER_FILES = ["hf_quant_config.json", "quantize_config.json", "quant_config.json"];
/** vLLM's, of `--quantization-param-path`. */
const CACHE_SCALES_FILE = "kv_cache_scales.json";
/** The second is an older name of compressed-tensors, the third MLX's. */
const QUANTIZATION_FIELDS = ["quantization_config", "compression_config", "quantization"];
const FILES_NAMED = 3;
const FILES_IN_DETAILS = 100;
