// Mistral in the Hugging Face layout: the tensors of Llama, never a bias.

import { denseLayer } from "./decoder-parts.js";
import type { Family } from "./family.js";

export const mistral: Family = {
  architectures: ["MistralForCausalLM"],
  modelTypes: ["mistral"],
  tiedByDefault: false,
  decoderLayer: (model, prefix) => denseLayer(model, prefix, { attention: { bias: "none" }, mlpBias: false }),
};
