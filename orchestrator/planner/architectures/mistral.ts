// Mistral in the Hugging Face layout: the tensors of Llama, whose config has no options for biases.

import { denseLayer } from "./decoder-parts.js";
import type { Family } from "./family.js";

export const mistral: Family = {
  architectures: ["MistralForCausalLM"],
  modelTypes: ["mistral"],
  tiedByDefault: false,
  decoderLayer: (model, prefix) =>
    denseLayer(model, prefix, { attention: { bias: "where_present" }, mlpBias: "where_present" }),
};
