// Gemma 3: as Gemma 2, with norms over heads. The larger models see: their text model's config is nested, its tensors have a
// prefix, and there is a vision tower, which is not loaded.

import { type ModelConfig, nestedConfig } from "../../checkpoint/model-config.js";
import type { Family } from "./family.js";
import { gemmaLayer } from "./gemma2.js";

export const gemma3: Family = {
  architectures: ["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
  modelTypes: ["gemma3_text", "gemma3"],
  tiedByDefault: true,
  textConfig,
  prefixes: [
    { onDisk: "language_model.", plain: "" },
    { onDisk: "model.language_model.", plain: "model." },
  ],
  decoderLayer: (model, prefix) => gemmaLayer(model, prefix, { headNorms: true }),
  skip: (name) => (VISION.test(name) ? "the vision tower is not loaded, only the text model" : null),
};

/** Published nested configs leave out what is the model type's default. */
function textConfig(config: ModelConfig): ModelConfig {
  const text = nestedConfig(config, "text_config");
  if (text === null) return config;
  return { ...text, fields: { ...TEXT_DEFAULTS, ...text.fields } };
}

const TEXT_DEFAULTS = { vocab_size: 262208, num_attention_heads: 8, num_key_value_heads: 4, head_dim: 256 };
const VISION = /^(?:model\.)?(?:vision_tower|multi_modal_projector)\./;
