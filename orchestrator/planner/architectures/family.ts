// What a model family says about its tensors: the words in which the data tables of this folder are written. A family turns
// a model's dimensions into layers of tensor specifications; it knows names, fuse groups and partition rules, never bytes.

import type { ModelConfig } from "../../checkpoint/model-config.js";
import type { CutSpec } from "../../program/cut-part.js";

/** The sizes that every decoder has; the others are read from `config` by the pieces that have them. */
export interface Dimensions {
  /** Of the text model. */
  config: ModelConfig;
  modelType: string;
  hiddenSize: number;
  headCount: number;
  layerCount: number;
  vocabularySize: number;
  tied: boolean;
}

/** One way in which a checkpoint may give a part: the tensor's name, and how the part lies in it. */
export interface PartSource {
  /** Full checkpoint name; `{expert}` in it: one tensor an expert. */
  name: string;
  /** Shapes that the whole checkpoint tensor may have. */
  shapes: readonly (readonly number[])[];
  /**
   * Where the part lies in it, in elements: (row, col) of expert e at first + e·expertStride + row·rowStride + col·colStride.
   * Absent: the tensor is the part, row by row, a stacked one expert by expert.
   */
  view?: { first: number; rowStride: number; colStride: number; expertStride?: number };
  /** Counts only where this other tensor has this shape: that of a square one does not say whether it is transposed. */
  where?: { name: string; shape: readonly number[] };
}

/** One matrix (or vector, scalar) of which a kernel tensor is stacked. */
export interface PartSpec extends CutSpec {
  /** The first that is there with a shape it allows gives the part; `tensor_missing` names the first. */
  sources: readonly PartSource[];
}

export interface TensorSpec {
  /** The kernel tensor's full name. */
  name: string;
  /** Stacked by rows in this order; empty for a derived tensor. */
  parts: readonly PartSpec[];
  /** A linear weight: the recipe applies. */
  quantized: boolean;
  /** Not quantized by any recipe, but a checkpoint may have FP8 codes of it; of what is quantized it always may. */
  mayBeCodes?: boolean;
  /**
   * `required`: a part that is not in the checkpoint is `tensor_missing`. A family lists no tensor that the architecture or the
   * config does not demand, whatever a checkpoint has. `attention_scale`: an F32 scalar, 1 when absent, positive, set in the
   * finalize phase.
   */
  presence: "required" | "attention_scale";
  /** That many matrices, one an expert; the parts are those of each. */
  experts?: number;
  /** Made at finalize from a kernel tensor of the same layer that is finished. */
  derived?: DerivedSpec;
  /** Kept as F32, whatever dtype is asked for. */
  straightToF32?: boolean;
}

/** The rows [firstRow, firstRow + rows) of each head of `from`, a matrix of heads · headRows rows; each head's transposed or not. */
export interface DerivedSpec {
  /** The kernel tensor's full name. */
  from: string;
  /** Of the whole model. */
  heads: number;
  headRows: number;
  firstRow: number;
  rows: number;
  cols: number;
  transposed: boolean;
}

export interface LayerSpec {
  name: string;
  tensors: readonly TensorSpec[];
}

export interface Family {
  /** Values of `architectures[0]` that mean this family. */
  architectures: readonly string[];
  /** Values of `model_type` that mean it when `architectures` is absent or names a wrapped class; the first is the family's own. */
  modelTypes: readonly string[];
  /** What an absent `tie_word_embeddings` means. */
  tiedByDefault: boolean;
  /** The text model's config, where config.json has it nested in that of a larger model. */
  textConfig?(config: ModelConfig): ModelConfig;
  /** Beginnings of checkpoint names that may stand for the plain ones, such as `language_model.` for nothing. */
  prefixes?: readonly { onDisk: string; plain: string }[];
  /** The kernel tensors of decoder layer `index`; names start with `prefix`, such as `model.layers.7.`. */
  decoderLayer(model: Dimensions, prefix: string, index: number): readonly TensorSpec[];
  /** The family's own rule by which a tensor is skipped that no kernel tensor needs; null: no rule. */
  skip?(name: string, model: Dimensions): string | null;
}
