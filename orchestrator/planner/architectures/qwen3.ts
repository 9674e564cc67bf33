// Qwen3: as Llama, with a norm over each query head and each key head; attention biases are an option of the config.

import { configuredBias, denseLayer } from "./decoder-parts.js";
import type { Family } from "./family.js";

export const qwen3: Family = {
  architectures: ["Qwen3ForCausalLM"],
  modelTypes: ["qwen3"],
  tiedByDefault: false,
  decoderLayer: (model, prefix) =>
    denseLayer(model, prefix, { attention: { bias: configuredBias(model), headNorms: true }, mlpBias: false }),
};
