// The checkpoint as a table, and the plan made from it. A plan has two parts with lives of their own: the *layout* (which
// kernel tensors a rank holds, from which checkpoint tensors and by which rules they are cut) stays the same from RL step to RL
// step; the *source* (which file, which offset) is new each time. A layout has two digests: one of its kernel tensors, which
// is the arena's identity, and one of the whole *mapping* of checkpoint tensors to them, by which workers keep what they resolved.

import type { DType, FormatDType, SourceDType, StoredDType } from "./dtype.js";
import type { Recipe, Scheme } from "./recipe.js";

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
  /** Sorted by name, as a model has it that is not wrapped. */
  tensors: Map<string, CheckpointTensor>;
  /** Tensors that the index names and that are not where it says. */
  absent: ReadonlyMap<string, AbsentTensor>;
  /** What is odd about it, and was put up with. */
  warnings: readonly SourceWarning[];
}

export interface AbsentTensor {
  /** Name of the file that the index puts it into. */
  file: string;
  /** Whether that file is there. */
  isFileThere: boolean;
}

/** As it will stand in the reload's record. */
export interface SourceWarning {
  code: string;
  message: string;
  details: Record<string, unknown>;
}

/** How a rank R of T cuts its slice out of a part, a matrix of [rows, cols]. */
export type PartRule =
  /** Column parallel: rows [R·rows/T, (R+1)·rows/T). */
  | { kind: "rows" }
  /** Column parallel by key/value heads; T > heads puts each head on T/heads consecutive ranks. */
  | { kind: "kv_heads"; heads: number }
  /** Row parallel: columns [R·cols/T, (R+1)·cols/T). */
  | { kind: "columns" }
  /** Rows padded with zeros to `paddedRows`, then cut as `rows`. */
  | { kind: "vocabulary"; paddedRows: number }
  /** The whole part on every rank. */
  | { kind: "replicate" };

/**
 * One of the matrices that a kernel tensor is stacked from by rows: a view of a checkpoint tensor. Element (r, c) is the one at
 * first + r·rowStride + c·colStride. So a part can be a whole tensor, a window of one that is fused on disk, one expert of one
 * that is stacked, and transposed in all of them. A vector of n is n rows of 1 column, a scalar 1 by 1.
 */
export interface Part {
  /** Indexes into Layout.checkpointTensors and the arrays of Source: one, or one an expert. */
  tensors: number[];
  /** First element in each of `tensors`. */
  firsts: number[];
  /** Whole, before a rank cuts. */
  rows: number;
  cols: number;
  /** In elements; one of the two is 1, the other the last dimension of the checkpoint tensor. */
  rowStride: number;
  colStride: number;
  rule: PartRule;
  /** A rank's cut is made up with zeros, below and to the right, to multiples of this; 1: it stays as it is. */
  padTo: number;
  /** For FP8 codes on disk that are to be made values again; null: the part is taken as it is. */
  scales: PartScales | null;
}

/** Element (r, c) of a part has the scale at row ⌊(row + r)/blockRows⌋, column ⌊(col + c)/blockCols⌋ of its matrix of scales. */
export interface PartScales {
  /** Parallel to Part.tensors. */
  tensors: number[];
  /** First element of the matrix of scales in each of `tensors`. */
  firsts: number[];
  /** In elements of the scale tensor. */
  rowStride: number;
  /** May exceed the matrix: one scale for all of it. */
  blockRows: number;
  blockCols: number;
  /** Where the part begins in the matrix that the scales are for. */
  row: number;
  col: number;
}

/** Made from a kernel tensor of the same layer that is finished: rows [firstRow, firstRow + rows) of each of its heads. */
export interface Derived {
  /** The kernel tensor; a matrix of heads · headRows rows. */
  from: string;
  /** How its codes are scaled, and by which tensor of the arena; `none` and null: it holds values. */
  scheme: Scheme;
  scale: string | null;
  /** The rank's. */
  heads: number;
  headRows: number;
  firstRow: number;
  /** Each head's matrix is written as [cols, rows]. */
  transposed: boolean;
}

export interface KernelTensor {
  name: string;
  /** What the rank holds: codes of a quantized weight are F8_E4M3. */
  dtype: DType;
  /** The rank's shape, of one matrix where there are experts; equal on all ranks. */
  shape: number[];
  /** The same as a matrix; of one head where it is derived, before transposing. */
  rows: number;
  cols: number;
  /** Empty when the tensor is `constant` or `derived`. */
  parts: Part[];
  /**
   * That many matrices, one an expert, one behind the other: what is held is [experts here, ...shape]. `byRank`: each rank has
   * some of them whole, see planner/expert-placement.ts; else every rank has its cut of all.
   */
  experts: { count: number; byRank: boolean } | null;
  derived: Derived | null;
  scheme: Scheme;
  /** Where the scales of one matrix go, when the scheme has any. */
  scale: { name: string; shape: number[] } | null;
  /** Values are rounded to this dtype before anything else; null: as in the checkpoint. */
  roundTo: SourceDType | null;
  /** The value of a scalar that the checkpoint does not give (attention scales: 1). */
  constant: number | null;
  /** A value that is zero or negative is an error (attention scales). */
  mustBePositive: boolean;
  /** Each part gives the same one value: the first is kept, another one in the others is an error. */
  mustAgree: boolean;
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
  /** Whole experts by rank, instead of a cut of each. */
  expertParallel: boolean;
  scheme: Recipe;
  layers: PlanLayer[];
  /** Those used; parts name them by their index in this. */
  checkpointTensors: { name: string; shape: number[] }[];
}

/** Where the bytes are: arrays parallel to Layout.checkpointTensors. */
export interface Source {
  files: CheckpointFile[];
  file: number[];
  offset: number[];
  dtype: StoredDType[];
}

/** Of layouts and sources as Redis keeps them. Raise it when a field of Layout or Source changes its meaning: others are not read. */
export const PLAN_FORMAT = 3;

export interface Plan {
  layout: Layout;
  /** sha256 over the kernel tensors, hex: equal where an arena serves both. */
  layoutDigest: string;
  /** sha256 over the whole layout, hex: equal where layouts are. */
  mappingDigest: string;
  source: Source;
  /** sha256 over the source's files (path, size, mtime, inode, header digest), hex. */
  sourceDigest: string;
  /** Checkpoint tensors that are not used, and the rule that says so. */
  skipped: { name: string; reason: string }[];
  /** What is odd about the source, and was put up with. */
  warnings: readonly SourceWarning[];
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
