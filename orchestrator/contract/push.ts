// Push sessions: a trainer sends tensors in buckets instead of naming a checkpoint. The bodies of its routes, and what
// orchestrator and worker both know of a bucket.

import { type Static, Type } from "typebox";
import { FORMAT_DTYPE_BITS, type FormatDType, type SourceDType } from "./dtype.js";
import type { CheckpointFile } from "./plan.js";
import { closed, nullable, oneOf, optional } from "./schema.js";

/** `spool`: every bucket is kept until the reload has ended. `trainer`: a bucket that is needed again is asked for again. */
export const RETAIN = ["spool", "trainer"] as const;
export type Retain = (typeof RETAIN)[number];

/**
 * In a bucket's `__metadata__`: JSON, from the names of tensors that are parts of larger ones to
 * `{"offset": [row, 0, ...], "global_shape": [rows, ...]}`. Of the first dimension alone a tensor may be a part.
 */
export const ROW_RANGES_KEY = "layercast.row_ranges";

const DTYPE_NAMES = Object.keys(FORMAT_DTYPE_BITS) as FormatDType[];

export const DeclaredTensorBody = Type.Object(
  {
    name: Type.String({ minLength: 1, maxLength: 500 }),
    dtype: oneOf(DTYPE_NAMES),
    shape: Type.Array(Type.Integer({ minimum: 0 }), { maxItems: 8 }),
  },
  closed,
);
export type DeclaredTensor = Static<typeof DeclaredTensorBody>;

/** The fields of a push session's source beside `kind`. What is left out, `pushSettings` fills in. */
export const PUSH_FIELDS = {
  config: Type.Record(Type.String(), Type.Unknown(), { description: "push: the model's config.json" }),
  tensors: Type.Array(DeclaredTensorBody, {
    maxItems: 1_000_000,
    description:
      "push: what will be sent; default: what the config demands, in the dtype that it names, or in any float dtype where the request's dtype rounds it",
  }),
  retain: oneOf(RETAIN, {
    description: "push: spool (default) keeps buckets until the end, trainer asks again for those that are lost",
  }),
  retain_export: Type.Boolean({
    description: "push: each rank keeps a file of what it holds after the commit, to start again from (default false)",
  }),
  partial: Type.Boolean({ description: "push: some modules only; all others keep their bytes (default false)" }),
  idle_ms: Type.Integer({
    minimum: 1,
    maximum: 86_400_000,
    description: "push: the session fails when the trainer has sent nothing for so long (default 60000)",
  }),
  max_pending_buckets: Type.Integer({
    minimum: 1,
    maximum: 10_000,
    description: "push: more buckets than this that are not consumed yet are answered 429 (default 8)",
  }),
  max_buffer_bytes: Type.Integer({
    minimum: 1,
    description: "push: a rank buffers no more than this of modules that are not complete; default: no limit",
  }),
  warn_buffer_bytes: Type.Integer({
    minimum: 0,
    description: "push: no warning about modules that are filled at the same time below this (default 0)",
  }),
} as const;

/** A push source as it is used, with its defaults; without the model, which is kept apart. */
export interface PushSettings {
  kind: "push";
  retain: Retain;
  retainExport: boolean;
  partial: boolean;
  idleMs: number;
  maxPendingBuckets: number;
  maxBufferBytes: number | null;
  warnBufferBytes: number;
}

const PushFields = Type.Object(optional(PUSH_FIELDS));

/** What the request says, and for the rest what happens if it says nothing. */
export function pushSettings(said: Static<typeof PushFields>): PushSettings {
  return {
    kind: "push",
    retain: said.retain ?? "spool",
    retainExport: said.retain_export ?? false,
    partial: said.partial ?? false,
    idleMs: said.idle_ms ?? 60_000,
    maxPendingBuckets: said.max_pending_buckets ?? 8,
    maxBufferBytes: said.max_buffer_bytes ?? null,
    warnBufferBytes: said.warn_buffer_bytes ?? 0,
  };
}

/** What a push session is about: the config, and the tensors when the trainer has listed them. */
export interface PushModel {
  config: Record<string, unknown>;
  tensors: DeclaredTensor[] | null;
}

export const BucketBody = Type.Object(
  {
    uri: Type.String({
      minLength: 1,
      maxLength: 4096,
      description: "file:// URI or absolute path of a safetensors file under an allowed root, shared memory included",
    }),
    immutable: Type.Boolean({
      default: false,
      description:
        "Nobody writes to this file again: what is retained may be a hard link to it instead of a copy. Removing it is fine",
    }),
  },
  { ...closed, $id: "BucketRequest" },
);
export type BucketRequest = Static<typeof BucketBody>;

/** `pending`: some rank still needs it. `consumed`: its memory is the trainer's again. `wanted`: it is to be sent again. */
export const BUCKET_STATES = ["pending", "consumed", "wanted"] as const;
export type BucketState = (typeof BUCKET_STATES)[number];

export const BucketAnswer = Type.Object(
  {
    reload_id: Type.String(),
    bucket: Type.Integer({ minimum: 0 }),
    state: oneOf(BUCKET_STATES),
    bytes: Type.Integer({ description: "Of its tensors" }),
    tensors: Type.Integer({ description: "Tensors, or parts of tensors, in it" }),
    waiting_for: Type.Array(Type.String(), { description: "Ranks (replica/rank) that have not taken it yet" }),
  },
  { $id: "Bucket" },
);
export type BucketView = Static<typeof BucketAnswer>;

export const ExpectedTensorsAnswer = Type.Object(
  {
    tensors: Type.Array(
      Type.Object({
        name: Type.String(),
        dtype: oneOf(DTYPE_NAMES),
        shape: Type.Array(Type.Integer()),
        modules: Type.Array(Type.String(), { description: "Which it is needed for" }),
        rows_received: Type.Integer({ description: "Of its first dimension; 1 for a scalar" }),
      }),
      { description: "In the order in which modules are complete the soonest" },
    ),
  },
  { $id: "ExpectedTensors" },
);
export type ExpectedTensorsView = Static<typeof ExpectedTensorsAnswer>;

/** Of a push reload, as a whole. */
export const PushAnswer = Type.Object({
  retain: oneOf(RETAIN),
  partial: Type.Boolean(),
  finished: Type.Boolean({ description: "Nothing more will be sent" }),
  buckets: Type.Object({
    accepted: Type.Integer(),
    consumed: Type.Integer(),
    wanted: Type.Array(Type.Integer(), { description: "To be sent again" }),
  }),
});

export type PushView = Static<typeof PushAnswer>;

const ModuleBytes = Type.Object({
  module: Type.String(),
  host_bytes: Type.Integer(),
  device_bytes: Type.Integer(),
});

/** Of a push reload, of one rank. */
export const RankPushAnswer = Type.Object({
  buckets_taken: Type.Integer(),
  buffers: Type.Object(
    {
      host_bytes: Type.Integer(),
      device_bytes: Type.Integer(),
      peak_host_bytes: Type.Integer(),
      peak_device_bytes: Type.Integer(),
      modules: Type.Array(ModuleBytes, { description: "Those that hold most, at most twenty" }),
      module_count: Type.Integer(),
    },
    { description: "Measured: what the rank holds now of modules that are not complete, and the most it held" },
  ),
  paths: Type.Object(
    {
      whole: Type.Integer(),
      streamed: Type.Integer(),
      buffered: Type.Integer(),
    },
    {
      description:
        "Matrices written: whole, straight from one bucket; streamed, piece by piece without a buffer; buffered first",
    },
  ),
});
export type RankPush = Static<typeof RankPushAnswer>;

export const nullablePush = nullable(PushAnswer);

/** Rows [firstRow, firstRow + rows) of a checkpoint tensor's first dimension (a scalar is one row), as they lie in a bucket. */
export interface BucketPiece {
  /** Index into Layout.checkpointTensors. */
  tensor: number;
  firstRow: number;
  rows: number;
  /** Of the first byte, from the start of the bucket's file. */
  offset: number;
  /** Where it is another than the plan's; all rows of a tensor come in the same one. */
  dtype?: SourceDType;
}

export interface Bucket {
  /** In the order of acceptance, from 0; what ranks know it by. */
  sequence: number;
  /** What the trainer knows it by. */
  number: number;
  /** Counts deliveries from 0: a bucket that is wanted again comes in another file. */
  delivery: number;
  /** Where its bytes are now. */
  file: CheckpointFile;
  /** False: they were the trainer's, who may have used that memory again: it is `consumed` or `wanted`, and not in a spool. */
  isReadable: boolean;
  /** Sorted by tensor and row. Tensors that no kernel tensor needs are left out. */
  pieces: BucketPiece[];
  /** Of all its tensors. */
  bytes: number;
}
