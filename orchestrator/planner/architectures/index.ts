// Finds the family that a config names, and turns the two into the model's layers: the embedding, the decoder layers, the
// last norm and, unless tied, the head. A new family is one file beside this one and one name in the list.

import { type ModelConfig, readFlag, readSize } from "../../checkpoint/model-config.js";
import { quoted } from "../../checkpoint/strict-json.js";
import { LayercastError } from "../../contract/errors.js";
import { norm, vocabularyTable } from "./decoder-parts.js";
import type { Dimensions, Family, LayerSpec } from "./family.js";
import { llama } from "./llama.js";
import { mistral } from "./mistral.js";
import { qwen2 } from "./qwen2.js";
import { qwen3 } from "./qwen3.js";

const FAMILIES: readonly Family[] = [llama, mistral, qwen2, qwen3];

/** The family by `architectures[0]`; by `model_type` only where that is absent. */
export function familyOf(config: ModelConfig): Family {
  const { architecture, modelType } = config;
  const family = FAMILIES.find((candidate) =>
    architecture !== null
      ? candidate.architectures.includes(architecture)
      : modelType !== null && candidate.modelTypes.includes(modelType),
  );
  if (family !== undefined) return family;
  const known = FAMILIES.flatMap(({ architectures }) => architectures);
  const named = quoted(architecture ?? modelType ?? "that config.json does not name");
  throw new LayercastError(
    "unsupported_architecture",
    `The architecture ${named} is not known; known are ${known.join(", ")}.`,
    { architecture, model_type: modelType, known },
  );
}

export function readDimensions(config: ModelConfig, family: Family): Dimensions {
  const hiddenSize = readSize(config, "hidden_size");
  const headCount = readSize(config, "num_attention_heads");
  return {
    config,
    modelType: config.modelType ?? family.modelTypes[0] ?? "unknown",
    hiddenSize,
    intermediateSize: readSize(config, "intermediate_size"),
    headCount,
    keyValueHeadCount: readSize(config, "num_key_value_heads", headCount),
    headSize: readSize(config, "head_dim", hiddenSize / headCount),
    layerCount: readSize(config, "num_hidden_layers"),
    vocabularySize: readSize(config, "vocab_size"),
    tied: readFlag(config, "tie_word_embeddings", family.tiedByDefault),
  };
}

/** In the order of loading. Made one by one, for the number of layers is what a stranger's config says. */
export function* layersOf(family: Family, model: Dimensions): Generator<LayerSpec> {
  yield { name: "model.embed_tokens", tensors: [vocabularyTable("model.embed_tokens", model)] };
  for (let index = 0; index < model.layerCount; index++) {
    const name = `${DECODER_LAYERS}${index}`;
    yield { name, tensors: family.decoderLayer(model, `${name}.`, index) };
  }
  yield { name: "model.norm", tensors: [norm("model.norm", model.hiddenSize)] };
  if (!model.tied) yield { name: LM_HEAD, tensors: [vocabularyTable(LM_HEAD, model)] };
}

/** The rule by which a checkpoint tensor that no kernel tensor needs is skipped; null: no rule, it is unexpected. */
export function skipReason(name: string, model: Dimensions): string | null {
  if (name.includes(".rotary_emb.")) return "rotary tables are computed, not loaded";
  if (model.tied && name === `${LM_HEAD}.weight`) return "tied: model.embed_tokens.weight serves as the head";
  const index = DECODER_LAYER.exec(name)?.[1];
  if (index !== undefined && Number(index) >= model.layerCount)
    return `layer ${index} lies past num_hidden_layers ${model.layerCount} (multi-token prediction)`;
  return null;
}

const DECODER_LAYERS = "model.layers.";
const DECODER_LAYER = /^model\.layers\.(\d+)\./;
const LM_HEAD = "lm_head";
