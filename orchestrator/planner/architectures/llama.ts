// Llama: grouped-query attention and a gated MLP, with biases where the config says so.

import { readFlag } from "../../checkpoint/model-config.js";
import { configuredBias, denseLayer } from "./decoder-parts.js";
import type { Family } from "./family.js";

export const llama: Family = {
  architectures: ["LlamaForCausalLM"],
  modelTypes: ["llama"],
  tiedByDefault: false,
  decoderLayer: (model, prefix) =>
    denseLayer(model, prefix, {
      attention: { bias: configuredBias(model) },
      mlpBias: readFlag(model.config, "mlp_bias", false),
    }),
};
