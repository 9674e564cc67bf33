// Qwen2-MoE and Qwen3-MoE: the attention of Qwen2 and of Qwen3, and experts in the layers that the config says. Qwen2-MoE has biases
// of q, k and v unless the config says qkv_bias: false, and a shared expert beside the others, with a gate of its own.

import { readCount, readFlag, readIndexes, readSize } from "../../checkpoint/model-config.js";
import {
  type AttentionOptions,
  configuredBias,
  gatedMlp,
  groupedQueryAttention,
  intermediateSize,
  matrix,
  norm,
  REPLICATE,
} from "./decoder-parts.js";
import { type Experts, expertCount, PROJECTIONS, routedExperts, router } from "./experts.js";
import type { Dimensions, Family, TensorSpec } from "./family.js";

export const qwen2Moe: Family = {
  architectures: ["Qwen2MoeForCausalLM"],
  modelTypes: ["qwen2_moe"],
  tiedByDefault: false,
  decoderLayer: (model, prefix, index) =>
    decoderLayer(model, prefix, {
      attention: { bias: readFlag(model.config, "qkv_bias", true) ? "qkv" : "none" },
      feedForward: isSparse(model, index)
        ? [...sparse(model, `${prefix}mlp.`), ...sharedExpert(model, `${prefix}mlp.`)]
        : dense(model, `${prefix}mlp.`),
    }),
};

export const qwen3Moe: Family = {
  architectures: ["Qwen3MoeForCausalLM"],
  modelTypes: ["qwen3_moe"],
  tiedByDefault: false,
  decoderLayer: (model, prefix, index) =>
    decoderLayer(model, prefix, {
      attention: { bias: configuredBias(model), headNorms: true },
      feedForward: isSparse(model, index) ? sparse(model, `${prefix}mlp.`) : dense(model, `${prefix}mlp.`),
    }),
};

function decoderLayer(
  model: Dimensions,
  prefix: string,
  { attention, feedForward }: { attention: AttentionOptions; feedForward: TensorSpec[] },
): TensorSpec[] {
  return [
    norm(`${prefix}input_layernorm`, model.hiddenSize),
    ...groupedQueryAttention(model, prefix, attention),
    norm(`${prefix}post_attention_layernorm`, model.hiddenSize),
    ...feedForward,
  ];
}

function isSparse({ config }: Dimensions, index: number): boolean {
  const step = readSize(config, "decoder_sparse_step", 1);
  return (index + 1) % step === 0 && !readIndexes(config, "mlp_only_layers").includes(index);
}

function dense(model: Dimensions, prefix: string): TensorSpec[] {
  return gatedMlp(model, { prefix, ...intermediateSize(model), bias: false });
}

function sparse(model: Dimensions, prefix: string): TensorSpec[] {
  const field = "moe_intermediate_size";
  const size = readSize(model.config, field);
  const experts: Experts = { count: expertCount(model), size, field, prefix, onDisk: [prefix], names: PROJECTIONS };
  return [router(model, experts), ...routedExperts(model, experts)];
}

/** What a config that leaves it out means: every Qwen2-MoE has a shared expert, unless the size is 0. */
const SHARED_EXPERT_SIZE = 5632;

/** Sees every token, weighted by a gate of one row. */
function sharedExpert(model: Dimensions, prefix: string): TensorSpec[] {
  const field = "shared_expert_intermediate_size";
  const size = readCount(model.config, field, SHARED_EXPERT_SIZE);
  if (size === 0) return [];
  const gate = matrix(`${prefix}shared_expert_gate.weight`, 1, model.hiddenSize, REPLICATE);
  return [
    ...gatedMlp(model, { prefix: `${prefix}shared_expert.`, size, field, bias: false }),
    { name: `${prefix}shared_expert_gate.weight`, parts: [gate], quantized: false, presence: "required" },
  ];
}
