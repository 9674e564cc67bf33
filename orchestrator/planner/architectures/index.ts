// Finds the family that a config names, and turns the two into the model's layers: the embedding, the decoder layers, the
// last norm and, unless tied, the head. A new family is one file beside this one and one name in the list.

import { type ModelConfig, readFlag, readSize } from "../../checkpoint/model-config.js";
import { quoted } from "../../checkpoint/strict-json.js";
import { LayercastError } from "../../contract/errors.js";
import { zeroPointReason } from "./attention-scales.js";
import { norm, vocabularyTable } from "./decoder-parts.js";
import { deepseekV2, deepseekV3 } from "./deepseek.js";
import type { Dimensions, Family, LayerSpec, PartSource, TensorSpec } from "./family.js";
import { gemma2 } from "./gemma2.js";
import { gemma3 } from "./gemma3.js";
import { llama } from "./llama.js";
import { mistral } from "./mistral.js";
import { mixtral } from "./mixtral.js";
import { phi3 } from "./phi3.js";
import { qwen2Moe, qwen3Moe } from "./qwen-moe.js";
import { qwen2 } from "./qwen2.js";
import { qwen3 } from "./qwen3.js";

const FAMILIES: readonly Family[] = [
  llama,
  mistral,
  qwen2,
  qwen3,
  gemma2,
  gemma3,
  phi3,
  mixtral,
  qwen2Moe,
  qwen3Moe,
  deepseekV2,
  deepseekV3,
];

/** The family by `architectures[0]`; by `model_type` where that is absent or names a wrapped class of the family. */
export function familyOf({ architecture, modelType }: ModelConfig): Family {
  const byType = FAMILIES.find(({ modelTypes }) => modelType !== null && modelTypes.includes(modelType));
  const family =
    architecture === null
      ? byType
      : (FAMILIES.find(({ architectures }) => architectures.includes(architecture)) ??
        (byType !== undefined && wraps(architecture, byType) ? byType : undefined));
  if (family !== undefined) return family;
  const known = FAMILIES.flatMap(({ architectures }) => architectures);
  const named = architecture ?? modelType;
  throw new LayercastError(
    "unsupported_architecture",
    `${named === null ? "The config names no architecture" : `The architecture ${quoted(named)} is not known`}; known are ${known.join(", ")}.`,
    { architecture, model_type: modelType, known },
  );
}

/** Saved while it was wrapped, a model has the name of the wrapper's class: FSDP2's is `FSDP` before the model's own. */
function wraps(architecture: string, { architectures }: Family): boolean {
  return WRAPPERS.includes(architecture) || architectures.some((own) => architecture.endsWith(own));
}

export function readDimensions(whole: ModelConfig, family: Family): Dimensions {
  const config = family.textConfig?.(whole) ?? whole;
  return {
    config,
    modelType: ownModelType(config, family),
    hiddenSize: readSize(config, "hidden_size"),
    headCount: readSize(config, "num_attention_heads"),
    layerCount: readSize(config, "num_hidden_layers"),
    vocabularySize: readSize(config, "vocab_size"),
    tied: readFlag(config, "tie_word_embeddings", family.tiedByDefault),
  };
}

/** Not a word of the config that the family does not know: what is planned follows from the family. */
function ownModelType({ modelType }: ModelConfig, { modelTypes }: Family): string {
  return modelTypes.find((known) => known === modelType) ?? modelTypes[0] ?? "unknown";
}

/** In the order of loading. Made one by one, for the number of layers is what a stranger's config says. */
export function* layersOf(family: Family, model: Dimensions): Generator<LayerSpec> {
  const layer = (name: string, tensors: readonly TensorSpec[]) => ({ name, tensors: underAllNames(tensors, family) });
  yield layer("model.embed_tokens", [vocabularyTable("model.embed_tokens", model)]);
  for (let index = 0; index < model.layerCount; index++) {
    const name = `${DECODER_LAYERS}${index}`;
    yield layer(name, family.decoderLayer(model, `${name}.`, index));
  }
  yield layer("model.norm", [norm("model.norm", model.hiddenSize)]);
  if (!model.tied) yield layer(LM_HEAD, [{ ...vocabularyTable(LM_HEAD, model), mayBeCodes: true }]);
}

/** The sources of each part once more for every prefix that names on disk may have. */
function underAllNames(tensors: readonly TensorSpec[], { prefixes = [] }: Family): readonly TensorSpec[] {
  if (prefixes.length === 0) return tensors;
  const renamed = (source: PartSource): PartSource[] =>
    prefixes
      .filter(({ plain }) => source.name.startsWith(plain))
      .map(({ onDisk, plain }) => {
        const rename = (name: string) => onDisk + name.slice(plain.length);
        const { where } = source;
        return {
          ...source,
          name: rename(source.name),
          ...(where && { where: { ...where, name: rename(where.name) } }),
        };
      });
  return tensors.map((tensor) => ({
    ...tensor,
    parts: tensor.parts.map((part) => ({
      ...part,
      sources: part.sources.flatMap((source) => [source, ...renamed(source)]),
    })),
  }));
}

function plainName(name: string, { prefixes = [] }: Family): string {
  const prefix = prefixes.find(({ onDisk }) => name.startsWith(onDisk));
  return prefix === undefined ? name : prefix.plain + name.slice(prefix.onDisk.length);
}

/** The rule by which a checkpoint tensor that no kernel tensor needs is skipped; null: no rule, it is unexpected. */
export function skipReason(name: string, family: Family, model: Dimensions): string | null {
  if (name.includes(".rotary_emb.")) return "rotary tables are computed, not loaded";
  const plain = plainName(name, family);
  if (model.tied && TIED_HEAD.test(plain)) return "tied: model.embed_tokens.weight serves as the head";
  return zeroPointReason(plain) ?? family.skip?.(name, model) ?? null;
}

/** Classes that wrap any model and do not name it. */
const WRAPPERS = ["FullyShardedDataParallel", "DistributedDataParallel", "OptimizedModule"];
const DECODER_LAYERS = "model.layers.";
const LM_HEAD = "lm_head";
/** With the scales of one that is FP8. */
const TIED_HEAD = /^lm_head\.(?:weight|weight_scale|weight_scale_inv|input_scale)$/;
