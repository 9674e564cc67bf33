// Makes a checkpoint in memory from a config: the names and shapes that a Hugging Face model of that config would save,
// written down here apart from the planner. Every 16-bit element has a value of its own, as far as 16 bits go.

import { type ModelConfig, parseModelConfig } from "../../orchestrator/checkpoint/model-config.js";
import { elementCount, FORMAT_DTYPE_BITS, type FormatDType } from "../../orchestrator/contract/dtype.js";
import type { CheckpointTable } from "../../orchestrator/contract/plan.js";

export interface ConfigFields {
  architectures: string[];
  model_type: string;
  hidden_size: number;
  intermediate_size: number;
  num_attention_heads: number;
  num_key_value_heads?: number;
  head_dim?: number;
  num_hidden_layers: number;
  vocab_size: number;
  tie_word_embeddings?: boolean;
  attention_bias?: boolean;
  mlp_bias?: boolean;
  [field: string]: unknown;
}

export interface Synthetic {
  table: CheckpointTable;
  config: ModelConfig;
  /** By path. */
  files: Map<string, Uint8Array>;
}

export type Shapes = Record<string, number[]>;

export const LLAMA: ConfigFields = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  hidden_size: 24,
  intermediate_size: 48,
  num_attention_heads: 8,
  num_key_value_heads: 2,
  head_dim: 3,
  num_hidden_layers: 2,
  vocab_size: 100,
};

/** What a checkpoint of this config holds; `biases` are modules such as `self_attn.q_proj` that have one beside those of its model. */
export function shapesOf(fields: ConfigFields, biases: readonly string[] = []): Shapes {
  const { hidden_size: hidden, intermediate_size: wide, vocab_size: vocabulary } = fields;
  const heads = fields.num_attention_heads;
  const keyValueHeads = fields.num_key_value_heads ?? heads;
  const size = fields.head_dim ?? hidden / heads;
  const shapes: Shapes = { "model.embed_tokens.weight": [vocabulary, hidden], "model.norm.weight": [hidden] };
  if (fields.tie_word_embeddings !== true) shapes["lm_head.weight"] = [vocabulary, hidden];
  const attention = ["q_proj", "k_proj", "v_proj", "o_proj"].map((name) => `self_attn.${name}`);
  const mlp = ["gate_proj", "up_proj", "down_proj"].map((name) => `mlp.${name}`);
  const { model_type: type } = fields;
  const hasOption = type === "llama" || type === "qwen3";
  const biased = new Set([
    ...biases,
    ...(type === "qwen2" ? attention.slice(0, 3) : []),
    ...(hasOption && fields.attention_bias === true ? attention : []),
    ...(type === "llama" && fields.mlp_bias === true ? mlp : []),
  ]);
  const linears: Shapes = {
    "self_attn.q_proj": [heads * size, hidden],
    "self_attn.k_proj": [keyValueHeads * size, hidden],
    "self_attn.v_proj": [keyValueHeads * size, hidden],
    "self_attn.o_proj": [hidden, heads * size],
    "mlp.gate_proj": [wide, hidden],
    "mlp.up_proj": [wide, hidden],
    "mlp.down_proj": [hidden, wide],
  };
  for (let layer = 0; layer < fields.num_hidden_layers; layer++) {
    const prefix = `model.layers.${layer}.`;
    for (const [name, [rows = 0, cols = 0]] of Object.entries(linears)) {
      shapes[`${prefix}${name}.weight`] = [rows, cols];
      if (biased.has(name)) shapes[`${prefix}${name}.bias`] = [rows];
    }
    shapes[`${prefix}input_layernorm.weight`] = [hidden];
    shapes[`${prefix}post_attention_layernorm.weight`] = [hidden];
    if (fields.model_type === "qwen3") {
      shapes[`${prefix}self_attn.q_norm.weight`] = [size];
      shapes[`${prefix}self_attn.k_norm.weight`] = [size];
    }
  }
  return shapes;
}

/** Tensors of `dtype`, or of the dtype that `dtypes` gives, dealt out over `fileCount` files. */
export function synthesize(
  fields: Record<string, unknown>,
  shapes: Shapes,
  options: { dtype?: FormatDType; dtypes?: Record<string, FormatDType>; fileCount?: number; fill?: boolean } = {},
): Synthetic {
  const fileCount = options.fileCount ?? 3;
  const ends = Array.from({ length: fileCount }, (_, file) => 104 + 8 * file);
  const tensors: CheckpointTable["tensors"] = new Map();
  Object.keys(shapes)
    .sort()
    .forEach((name, index) => {
      const shape = shapes[name] ?? [];
      const dtype = options.dtypes?.[name] ?? options.dtype ?? "BF16";
      const file = (index * 7) % fileCount;
      const offset = ends[file] ?? 0;
      ends[file] = offset + (elementCount(shape) * FORMAT_DTYPE_BITS[dtype]) / 8;
      tensors.set(name, { name, dtype, shape, file, offset });
    });
  const files = new Map(ends.map((end, file) => [pathOf(file), filled(options.fill === false ? 0 : end, file)]));
  const table: CheckpointTable = {
    directory: "/ckpt",
    files: ends.map((end, file) => ({
      path: pathOf(file),
      sizeBytes: end,
      mtimeNs: "1700000000000000000",
      inode: `${file + 1}`,
      headerDigest: `${file}`.repeat(64),
    })),
    tensors,
    absent: new Map(),
    warnings: [],
  };
  return { table, config: parseModelConfig(JSON.stringify(fields), "/ckpt/config.json"), files };
}

/** The same, with no NaN, no infinity, and nothing that is one when it is rounded: no exponent is greater than 1. */
export function finite(checkpoint: Synthetic): Synthetic {
  for (const { dtype, shape, file, offset } of checkpoint.table.tensors.values()) {
    const bytes = checkpoint.files.get(pathOf(file));
    const size = FORMAT_DTYPE_BITS[dtype] / 8;
    for (let at = offset + size - 1; at < offset + elementCount(shape) * size && bytes !== undefined; at += size)
      bytes[at] = (bytes[at] ?? 0) & 0xbf;
  }
  return checkpoint;
}

function pathOf(file: number): string {
  return `/ckpt/model-${file}.safetensors`;
}

function filled(sizeBytes: number, seed: number): Uint8Array {
  const words = Uint16Array.from({ length: Math.ceil(sizeBytes / 2) }, (_, index) => index * 40503 + seed * 7919);
  return new Uint8Array(words.buffer, 0, sizeBytes);
}
