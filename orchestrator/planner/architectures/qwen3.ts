// Qwen3: as Llama, with a norm over each query head and each key head; attention biases are an option of the config.

import { readFlag } from "../../checkpoint/model-config.js";
import { biasPresence, denseLayer } from "./decoder-parts.js";
import type { Family } from "./family.js";

export const qwen3: Family = {
  architectures: ["Qwen3ForCausalLM"],
  modelTypes: ["qwen3"],
  tiedByDefault: false,
  decoderLayer: (model, prefix) =>
    denseLayer(model, prefix, {
      attention: { bias: biasPresence(readFlag(model.config, "attention_bias", false)), headNorms: true },
      mlpBias: "where_present",
    }),
};
