// Qwen2 and Qwen2.5: as Llama; q, k and v always have biases, of which the config does not speak.

import { denseLayer } from "./decoder-parts.js";
import type { Family } from "./family.js";

export const qwen2: Family = {
  architectures: ["Qwen2ForCausalLM"],
  modelTypes: ["qwen2"],
  tiedByDefault: false,
  decoderLayer: (model, prefix) => denseLayer(model, prefix, { attention: { bias: "qkv" }, mlpBias: false }),
};
