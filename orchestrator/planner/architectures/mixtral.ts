// Mixtral: Mistral's attention, and experts in every layer. w1, w3 and w2 are gate, up and down. Transformers 5 writes `mlp.`
// for what was `block_sparse_moe.`; kernel tensors keep the old name.

import { groupedQueryAttention, intermediateSize, norm } from "./decoder-parts.js";
import { type Experts, expertCount, routedExperts, router } from "./experts.js";
import type { Dimensions, Family, TensorSpec } from "./family.js";

export const mixtral: Family = {
  architectures: ["MixtralForCausalLM"],
  modelTypes: ["mixtral"],
  tiedByDefault: false,
  decoderLayer,
};

function decoderLayer(model: Dimensions, prefix: string): TensorSpec[] {
  const experts: Experts = {
    count: expertCount(model),
    ...intermediateSize(model),
    prefix: `${prefix}block_sparse_moe.`,
    onDisk: [`${prefix}block_sparse_moe.`, `${prefix}mlp.`],
    names: { gate: "w1", up: "w3", down: "w2" },
  };
  return [
    norm(`${prefix}input_layernorm`, model.hiddenSize),
    ...groupedQueryAttention(model, prefix, { bias: "none" }),
    norm(`${prefix}post_attention_layernorm`, model.hiddenSize),
    router(model, experts),
    ...routedExperts(model, experts),
  ];
}
