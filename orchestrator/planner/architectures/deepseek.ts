// DeepSeek-V2, DeepSeek-V3 and Kimi K2: latent attention; the first layers are dense, the others have routed experts and shared
// ones, which are one MLP as wide as all of them.

import { readCount, readSize, readSizeOrNull } from "../../checkpoint/model-config.js";
import { gatedMlp, intermediateSize, norm, REPLICATE, vector } from "./decoder-parts.js";
import { type Experts, expertCount, PROJECTIONS, routedExperts, router } from "./experts.js";
import type { Dimensions, Family, TensorSpec } from "./family.js";
import { latentAttention } from "./latent-attention.js";

export const deepseek: Family = {
  architectures: ["DeepseekV3ForCausalLM", "DeepseekV2ForCausalLM", "KimiK2ForCausalLM"],
  modelTypes: ["deepseek_v3", "deepseek_v2", "kimi_k2"],
  tiedByDefault: false,
  decoderLayer,
};

function decoderLayer(model: Dimensions, prefix: string, index: number): TensorSpec[] {
  const mlp = `${prefix}mlp.`;
  return [
    norm(`${prefix}input_layernorm`, model.hiddenSize),
    ...latentAttention(model, prefix),
    norm(`${prefix}post_attention_layernorm`, model.hiddenSize),
    ...(isSparse(model, index)
      ? sparse(model, mlp)
      : gatedMlp(model, { prefix: mlp, ...intermediateSize(model), bias: "where_present" })),
  ];
}

function isSparse({ config }: Dimensions, index: number): boolean {
  const hasExperts = readSizeOrNull(config, "n_routed_experts") !== null;
  const first = readCount(config, "first_k_dense_replace", 0);
  return hasExperts && index >= first && index % readSize(config, "moe_layer_freq", 1) === 0;
}

function sparse(model: Dimensions, prefix: string): TensorSpec[] {
  const { config } = model;
  const field = "moe_intermediate_size";
  const size = readSize(config, field);
  const experts: Experts = { count: expertCount(model), size, field, prefix, onDisk: [prefix], names: PROJECTIONS };
  const shared = size * readCount(config, "n_shared_experts", 0);
  return [
    router(model, experts),
    correctionBias(model, experts),
    ...routedExperts(model, experts),
    ...(shared === 0
      ? []
      : gatedMlp(model, {
          prefix: `${prefix}shared_experts.`,
          size: shared,
          field: `n_shared_experts * ${field}`,
          bias: "where_present",
        })),
  ];
}

/** Added to the router's scores when it chooses; too fine for 16 bits, so F32 whatever dtype is asked for. */
function correctionBias({ config }: Dimensions, { prefix, count }: Experts): TensorSpec {
  const name = `${prefix}gate.e_score_correction_bias`;
  return {
    name,
    parts: [vector(name, count, REPLICATE)],
    quantized: false,
    presence: config.fields.topk_method === "noaux_tc" ? "required" : "where_present",
    straightToF32: true,
  };
}
