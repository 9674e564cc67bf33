// Phi-3 and Phi-4: the tensors of Llama, but q, k and v are one tensor on disk, and gate and up are another. Never a bias.

import { denseLayer } from "./decoder-parts.js";
import type { Family } from "./family.js";

export const phi3: Family = {
  architectures: ["Phi3ForCausalLM"],
  modelTypes: ["phi3"],
  tiedByDefault: false,
  decoderLayer: (model, prefix) =>
    denseLayer(model, prefix, {
      attention: { bias: "none", fusedOnDisk: true },
      mlpBias: false,
      fusedOnDisk: true,
    }),
};
