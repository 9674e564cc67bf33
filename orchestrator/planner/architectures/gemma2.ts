// Gemma 2: as Llama, with a norm on either side of attention and of the MLP; the embedding serves as the head.

import { configuredBias, gatedMlp, groupedQueryAttention, intermediateSize, norm } from "./decoder-parts.js";
import type { Dimensions, Family, TensorSpec } from "./family.js";

export const gemma2: Family = {
  architectures: ["Gemma2ForCausalLM"],
  modelTypes: ["gemma2"],
  tiedByDefault: true,
  decoderLayer: (model, prefix) => gemmaLayer(model, prefix, { headNorms: false }),
};

export function gemmaLayer(model: Dimensions, prefix: string, options: { headNorms: boolean }): TensorSpec[] {
  const { hiddenSize } = model;
  return [
    norm(`${prefix}input_layernorm`, hiddenSize),
    ...groupedQueryAttention(model, prefix, { bias: configuredBias(model), ...options }),
    norm(`${prefix}post_attention_layernorm`, hiddenSize),
    norm(`${prefix}pre_feedforward_layernorm`, hiddenSize),
    ...gatedMlp(model, { prefix: `${prefix}mlp.`, ...intermediateSize(model), bias: false }),
    norm(`${prefix}post_feedforward_layernorm`, hiddenSize),
  ];
}
