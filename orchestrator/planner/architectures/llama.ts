// Llama: grouped-query attention and a gated MLP, with biases where the config or the checkpoint says so.

import { readFlag } from "../../checkpoint/model-config.js";
import { biasPresence, denseLayer } from "./decoder-parts.js";
import type { Family } from "./family.js";

export const llama: Family = {
  architectures: ["LlamaForCausalLM"],
  modelTypes: ["llama"],
  tiedByDefault: false,
  decoderLayer: (model, prefix) =>
    denseLayer(model, prefix, {
      attention: { bias: biasPresence(readFlag(model.config, "attention_bias", false)) },
      mlpBias: biasPresence(readFlag(model.config, "mlp_bias", false)),
    }),
};
