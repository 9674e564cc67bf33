// The checkpoint as a table, and the plan made from it. A plan has two parts with lives of their own: the *layout* (which
// kernel tensors a rank holds and by which rules they are cut) stays the same from RL step to RL step and has a digest; the
// *source* (which file, which offset) is new each time. Workers keep what they resolved by layout digest and rebind sources.

import type { DType, FormatDType, SourceDType } from "./dtype.js";
import type { Scheme } from "./recipe.js";

/** What tells one state of a checkpoint file from another. */
export interface CheckpointFile {
  /** Absolute, symbolic links resolved. */
  path: string;
  sizeBytes: number;
  /** Modification time in nanoseconds, decimal (beyond 2^53). */
  mtimeNs: string;
  inode: string;
  /** sha256 of the safetensors header's bytes, hex. */
  headerDigest: string;
}

export interface CheckpointTensor {
  name: string;
  /** Any the format knows; the planner refuses what it cannot place. */
  dtype: FormatDType;
  /** Row-major, [out, in] for a linear weight; [] for a scalar. */
  shape: number[];
  /** Index into CheckpointTable.files. */
  file: number;
  /** Of the first byte, from the start of the file. */
  offset: number;
}

export interface CheckpointTable {
  directory: string;
  files: CheckpointFile[];
  /** Sorted by name. */
  tensors: Map<string, CheckpointTensor>;
}

/** How a rank R of T cuts its slice out of a checkpoint tensor seen as [rows, cols]. */
export type PartRule =
  /** Column parallel: rows [R·rows/T, (R+1)·rows/T). */
  | { kind: "rows" }
  /** Column parallel by key/value heads; T > heads puts each head on T/heads consecutive ranks. */
  | { kind: "kv_heads"; heads: number }
  /** Row parallel: columns [R·cols/T, (R+1)·cols/T). */
  | { kind: "columns" }
  /** Rows padded with zeros to `paddedRows`, then cut as `rows`. */
  | { kind: "vocabulary"; paddedRows: number }
  /** The whole tensor on every rank. */
  | { kind: "replicate" };

/** One checkpoint tensor's contribution to a kernel tensor; parts are stacked by rows in their order. */
export interface Part {
  /** Index into Layout.checkpointTensors and the arrays of Source. */
  tensor: number;
  /** The whole checkpoint tensor as a matrix; a vector of n is n rows of 1 column, a scalar 1 by 1. */
  rows: number;
  cols: number;
  rule: PartRule;
}

export interface KernelTensor {
  name: string;
  /** What the rank holds: codes of a quantized weight are F8_E4M3. */
  dtype: DType;
  /** The rank's shape; equal on all ranks. */
  shape: number[];
  /** The rank's shape as a matrix. */
  rows: number;
  cols: number;
  /** Empty when the tensor is `constant`. */
  parts: Part[];
  scheme: Scheme;
  /** Where the scales go, when the scheme has any. */
  scale: { name: string; shape: number[] } | null;
  /** 16/32-bit values are rounded to this dtype before anything else; null: as in the checkpoint. */
  roundTo: SourceDType | null;
  /** The value of a scalar that the checkpoint does not give (attention scales: 1). */
  constant: number | null;
  /** A value that is zero or negative is an error (attention scales). */
  mustBePositive: boolean;
  /** `finalize` tensors wait for the rank barrier. */
  phase: "layer" | "finalize";
}

export interface PlanLayer {
  /** A decoder layer such as `model.layers.7`, or a top module such as `lm_head`. */
  name: string;
  kernelTensors: KernelTensor[];
}

export interface Layout {
  modelType: string;
  tensorParallelSize: number;
  scheme: Scheme;
  layers: PlanLayer[];
  /** Names of the checkpoint tensors used; Part.tensor is an index into this. */
  checkpointTensors: string[];
}

/** Where the bytes are: arrays parallel to Layout.checkpointTensors. */
export interface Source {
  files: CheckpointFile[];
  file: number[];
  offset: number[];
  dtype: SourceDType[];
}

export interface Plan {
  layout: Layout;
  /** sha256 over the layout, hex. */
  layoutDigest: string;
  source: Source;
  /** sha256 over the source's files (path, size, mtime, inode, header digest), hex. */
  sourceDigest: string;
  /** Checkpoint tensors that are not used, and the rule that says so. */
  skipped: { name: string; reason: string }[];
}

/** One tensor's place in an arena. */
export interface ArenaTensor {
  name: string;
  dtype: DType;
  shape: number[];
  /** From the start of the arena's tensor bytes; a multiple of 256. */
  offset: number;
  bytes: number;
}

export interface ArenaLayout {
  tensors: ArenaTensor[];
  /** All tensor bytes, pads included. */
  dataBytes: number;
  /** The live file's first bytes: 8-byte little-endian length and the padded JSON header; a multiple of 4096. */
  headerBytes: Uint8Array;
}
