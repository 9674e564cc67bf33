// DeepSeek-V2, DeepSeek-V3 and Kimi K2: latent attention; the first layers are dense, the others have routed experts and shared
// ones, which are one MLP as wide as all of them. The router of DeepSeek-V3 and of Kimi K2 always has a correction bias; configs
// name its topk_method only in some versions. That of DeepSeek-V2 has one where the config says so.

import { readCount, readSize, readSizeOrNull } from "../../checkpoint/model-config.js";
import { gatedMlp, intermediateSize, norm, REPLICATE, vector } from "./decoder-parts.js";
import { type Experts, expertCount, PROJECTIONS, routedExperts, router } from "./experts.js";
import type { Dimensions, Family, TensorSpec } from "./family.js";
import { latentAttention } from "./latent-attention.js";

export const deepseekV2: Family = {
  architectures: ["DeepseekV2ForCausalLM"],
  modelTypes: ["deepseek_v2"],
  tiedByDefault: false,
  decoderLayer: (model, prefix, index) =>
    decoderLayer(model, prefix, { index, correctionBias: model.config.fields.topk_method === "noaux_tc" }),
};

export const deepseekV3: Family = {
  architectures: ["DeepseekV3ForCausalLM", "KimiK2ForCausalLM"],
  modelTypes: ["deepseek_v3", "kimi_k2"],
  tiedByDefault: false,
  decoderLayer: (model, prefix, index) => decoderLayer(model, prefix, { index, correctionBias: true }),
  skip: multiTokenPrediction,
};

/**
 * The third generation keeps its layers for multi-token prediction behind the model's. In any other family such a layer means that
 * the config has too few, and a model that lacks its last layers must not be taken for the whole.
 */
function multiTokenPrediction(name: string, { layerCount }: Dimensions): string | null {
  const index = /^model\.layers\.(\d+)\./.exec(name)?.[1];
  if (index === undefined || Number(index) < layerCount) return null;
  return `layer ${index} lies past num_hidden_layers ${layerCount} (multi-token prediction)`;
}

function decoderLayer(
  model: Dimensions,
  prefix: string,
  { index, correctionBias }: { index: number; correctionBias: boolean },
): TensorSpec[] {
  const mlp = `${prefix}mlp.`;
  return [
    norm(`${prefix}input_layernorm`, model.hiddenSize),
    ...latentAttention(model, prefix),
    norm(`${prefix}post_attention_layernorm`, model.hiddenSize),
    ...(isSparse(model, index)
      ? sparse(model, mlp, correctionBias)
      : gatedMlp(model, { prefix: mlp, ...intermediateSize(model), bias: false })),
  ];
}

function isSparse({ config }: Dimensions, index: number): boolean {
  const hasExperts = readSizeOrNull(config, "n_routed_experts") !== null;
  const first = readCount(config, "first_k_dense_replace", 0);
  return hasExperts && index >= first && index % readSize(config, "moe_layer_freq", 1) === 0;
}

function sparse(model: Dimensions, prefix: string, correctionBias: boolean): TensorSpec[] {
  const { config } = model;
  const field = "moe_intermediate_size";
  const size = readSize(config, field);
  const experts: Experts = { count: expertCount(model), size, field, prefix, onDisk: [prefix], names: PROJECTIONS };
  const shared = size * readCount(config, "n_shared_experts", 0);
  return [
    router(model, experts),
    ...(correctionBias ? [correctionBiasOf(experts)] : []),
    ...routedExperts(model, experts),
    ...(shared === 0
      ? []
      : gatedMlp(model, {
          prefix: `${prefix}shared_experts.`,
          size: shared,
          field: `n_shared_experts * ${field}`,
          bias: false,
        })),
  ];
}

/** Added to the router's scores when it chooses; too fine for 16 bits, so F32 whatever dtype is asked for. */
function correctionBiasOf({ prefix, count }: Experts): TensorSpec {
  const name = `${prefix}gate.e_score_correction_bias`;
  return {
    name,
    parts: [vector(name, count, REPLICATE)],
    quantized: false,
    presence: "required",
    straightToF32: true,
  };
}
