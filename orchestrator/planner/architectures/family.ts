// What a model family says about its tensors: the words in which the data tables of this folder are written. A family turns
// a model's dimensions into layers of tensor specifications; it knows names, fuse groups and partition rules, never bytes.

import type { ModelConfig } from "../../checkpoint/model-config.js";
import type { PartRule } from "../../contract/plan.js";

/** The sizes that every decoder has. */
export interface Dimensions {
  config: ModelConfig;
  modelType: string;
  hiddenSize: number;
  intermediateSize: number;
  headCount: number;
  keyValueHeadCount: number;
  headSize: number;
  layerCount: number;
  vocabularySize: number;
  tied: boolean;
}

/** One checkpoint tensor's contribution to a kernel tensor. */
export interface PartSpec {
  /** Full checkpoint names that may give it, the first present one does; `tensor_missing` names the first. */
  names: readonly string[];
  /** Shapes it may have, whole. */
  shapes: readonly (readonly number[])[];
  rule: PartRule;
  /** What must divide by the tensor-parallel size, beyond the rule's own rows or columns. */
  units?: { count: number; field: string };
}

export interface TensorSpec {
  /** The kernel tensor's full name. */
  name: string;
  /** Stacked by rows in this order. */
  parts: readonly PartSpec[];
  /** A linear weight: the recipe applies. */
  quantized: boolean;
  /**
   * `required`: a part not in the checkpoint is `tensor_missing`. `where_present`: no kernel tensor when all parts are absent.
   * `attention_scale`: an F32 scalar, 1 when absent, positive, set in the finalize phase.
   */
  presence: "required" | "where_present" | "attention_scale";
}

export interface LayerSpec {
  name: string;
  tensors: readonly TensorSpec[];
}

export interface Family {
  /** Values of `architectures[0]` that mean this family. */
  architectures: readonly string[];
  /** Values of `model_type` that mean it when `architectures` is absent; the first is the family's own. */
  modelTypes: readonly string[];
  /** What an absent `tie_word_embeddings` means. */
  tiedByDefault: boolean;
  /** The kernel tensors of decoder layer `index`; names start with `prefix`, such as `model.layers.7.`. */
  decoderLayer(model: Dimensions, prefix: string, index: number): readonly TensorSpec[];
}
