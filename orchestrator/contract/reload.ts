// The REST API's bodies, once: Fastify validates with these schemas, OpenAPI prints them, the types are derived from them.
// JSON on the wire is snake_case.

import { type Static, Type } from "typebox";
import { REQUEST_DTYPES } from "./dtype.js";
import { AttachedEngineAnswer } from "./engines.js";
import { ERRORS, type ErrorCode } from "./errors.js";
import {
  type BucketState,
  nullablePush,
  PUSH_FIELDS,
  type PushModel,
  type PushSettings,
  pushSettings,
  RankPushAnswer,
} from "./push.js";
import { RECIPES } from "./recipe.js";
import { closed, nullable, oneOf, optional } from "./schema.js";

/** `queued -> planning -> loading -> finalizing -> committing -> committed`, or one of the other three ends. */
export const RELOAD_STATES = [
  "queued",
  "planning",
  "loading",
  "finalizing",
  "committing",
  "committed",
  "failed",
  "cancelled",
  "superseded",
] as const;
export type ReloadStateName = (typeof RELOAD_STATES)[number];

export const TERMINAL_STATES: readonly ReloadStateName[] = ["committed", "failed", "cancelled", "superseded"];

/** Ray's job status for each of our states, for tools that know those words. */
export const RAY_STATUS = {
  queued: "PENDING",
  planning: "RUNNING",
  loading: "RUNNING",
  finalizing: "RUNNING",
  committing: "RUNNING",
  committed: "SUCCEEDED",
  failed: "FAILED",
  cancelled: "STOPPED",
  superseded: "STOPPED",
} as const satisfies Record<ReloadStateName, string>;

/** Names end in keys, file names and the control page, so they are short and plain. */
export const NAME_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]*$";
export const MAX_NAME_LENGTH = 100;
const Name = (description: string) =>
  Type.String({ minLength: 1, maxLength: MAX_NAME_LENGTH, pattern: NAME_PATTERN, description });

const CheckpointUri = Type.String({
  minLength: 1,
  maxLength: 4096,
  description: "safetensors: file:// URI or absolute path of a checkpoint directory",
});

/** Of each kind its own fields; `readSource` makes the two apart. */
export const SourceBody = Type.Object(
  {
    kind: oneOf(["safetensors", "push"]),
    uri: Type.Optional(CheckpointUri),
    ...optional(PUSH_FIELDS),
  },
  {
    ...closed,
    $id: "Source",
    if: { type: "object", properties: { kind: { const: "push" } }, required: ["kind"] },
    // biome-ignore lint/suspicious/noThenProperty: the word is JSON Schema's
    then: { type: "object", required: ["config"], properties: { uri: false } },
    else: {
      type: "object",
      required: ["uri"],
      properties: Object.fromEntries(Object.keys(PUSH_FIELDS).map((field) => [field, false])),
    },
  },
);

/** A request's source, with its defaults. */
export type ReadSource =
  | { kind: "safetensors"; uri: string }
  | { kind: "push"; settings: PushSettings; model: PushModel };

export function readSource(source: Static<typeof SourceBody>): ReadSource {
  if (source.kind === "safetensors") return { kind: "safetensors", uri: source.uri ?? "" };
  const { config = {}, tensors = null } = source;
  return { kind: "push", settings: pushSettings(source), model: { config, tensors } };
}

export const RecipeBody = Type.Object(
  {
    scheme: oneOf(RECIPES, { default: "none" }),
    ignore: Type.Array(Type.String({ minLength: 1, maxLength: 500 }), {
      default: [],
      maxItems: 1000,
      description: "Patterns of checkpoint tensor names that are not quantized; `*` is any run of characters",
    }),
  },
  { ...closed, default: {} },
);

export const InstallBody = Type.Object(
  {
    mode: oneOf(["staged", "in_place"], { default: "staged" }),
    staging: oneOf(["device", "host", "auto"], { default: "auto" }),
    allow_new_layout: Type.Boolean({ default: false }),
    allow_non_finite: Type.Boolean({ default: false }),
  },
  { ...closed, default: {} },
);

export const PolicyBody = Type.Object(
  {
    coalesce: oneOf(["never", "latest"], { default: "never" }),
    priority: Type.Integer({ minimum: -1000, maximum: 1000, default: 0, description: "Higher goes first" }),
    deadline_ms: Type.Integer({
      minimum: 1,
      maximum: 86_400_000,
      default: 600_000,
      description: "From submit to the decision",
    }),
    heal_ms: Type.Integer({
      minimum: 1,
      maximum: 86_400_000,
      default: 600_000,
      description: "From the decision to the end",
    }),
    attempts: Type.Integer({
      minimum: 1,
      maximum: 100,
      default: 5,
      description: "Tries of one job, the first included",
    }),
    backoff_ms: Type.Integer({
      minimum: 0,
      maximum: 60_000,
      default: 200,
      description: "Before the second try; doubles, with cap and jitter",
    }),
    layers_per_job: Type.Unsafe<"auto" | number>({
      anyOf: [
        { type: "string", enum: ["auto"] },
        { type: "integer", minimum: 1, maximum: 100_000 },
      ],
      default: "auto",
    }),
  },
  { ...closed, default: {} },
);

const Metadata = Type.Record(Type.String(), Type.String({ maxLength: 1000 }), {
  default: {},
  maxProperties: 50,
  // Of a record TypeBox makes patternProperties, and drops what the keys' own schema limits.
  propertyNames: { type: "string", maxLength: 100 },
});

export const SubmitBody = Type.Object(
  {
    submission_id: Type.Optional(Name("Names this submission; the same id and body is the same reload")),
    fleet: Type.String({ ...Name("Fleet name"), default: "default" }),
    weight_version: Type.Optional(Name("What the weights are called; default: the submission id")),
    source: SourceBody,
    dtype: oneOf(Object.keys(REQUEST_DTYPES) as (keyof typeof REQUEST_DTYPES)[], { default: "auto" }),
    recipe: RecipeBody,
    install: InstallBody,
    policy: PolicyBody,
    metadata: Metadata,
  },
  { ...closed, $id: "Submit" },
);
export type SubmitRequest = Static<typeof SubmitBody>;

export const PlanBody = Type.Object(
  {
    fleet: Type.Optional(Name("Take the tensor-parallel size, and whether experts are whole, from this fleet")),
    tensor_parallel_size: Type.Optional(Type.Integer({ minimum: 1, maximum: 1024 })),
    expert_parallel: Type.Optional(
      Type.Boolean({ description: "Whole experts by rank instead of a part of each; default: the fleet's" }),
    ),
    source: SourceBody,
    dtype: SubmitBody.properties.dtype,
    recipe: RecipeBody,
    policy: Type.Object({ layers_per_job: PolicyBody.properties.layers_per_job }, { ...closed, default: {} }),
  },
  { ...closed, $id: "PlanRequest" },
);
export type PlanRequest = Static<typeof PlanBody>;

export const RollbackBody = Type.Object(
  {
    submission_id: Type.Optional(Name("Names this submission; the same id and body is the same rollback")),
    expected_weight_version: Type.Optional(Name("Refuse unless the fleet holds this weight version")),
    to_weight_version: Type.Optional(Name("Default: the fleet's rollback_version")),
  },
  { ...closed, $id: "Rollback", default: {} },
);
export type RollbackRequest = Static<typeof RollbackBody>;

const Milliseconds = Type.Number({ minimum: 0 });
const Timestamp = Type.String({ format: "date-time" });

export const ErrorAnswer = Type.Object({
  code: oneOf(Object.keys(ERRORS) as ErrorCode[]),
  message: Type.String(),
  retryable: Type.Boolean(),
  details: Type.Record(Type.String(), Type.Unknown()),
});

export const WarningAnswer = Type.Object({
  code: Type.String(),
  message: Type.String(),
  details: Type.Record(Type.String(), Type.Unknown()),
});
export type WarningReport = Static<typeof WarningAnswer>;

export const RankProgressAnswer = Type.Object({
  replica: Type.Integer(),
  rank: Type.Integer(),
  incarnation: Type.String(),
  state: oneOf(["waiting", "loading", "finalizing", "prepared", "swapped", "lost"]),
  layers_done: Type.Integer(),
  attempts: Type.Integer({ description: "Jobs begun, retries included: more than one in a reload that goes well" }),
  retries: Type.Integer({ description: "Jobs that failed and were tried again" }),
  bytes_read: Type.Integer(),
  bytes_written: Type.Integer(),
  read_ms: Milliseconds,
  place_ms: Milliseconds,
  quantize_ms: Milliseconds,
  write_ms: Milliseconds,
  finalize_ms: Milliseconds,
  swap_ms: Milliseconds,
  peak_memory_bytes: Type.Integer({ description: "Measured: the process's highest resident set during this reload" }),
  pinned_bytes: Type.Integer({ description: "Measured: most host memory pinned for the device during this reload" }),
  push: nullable(RankPushAnswer),
});
export type RankProgress = Static<typeof RankProgressAnswer>;

export const ReloadAnswer = Type.Object(
  {
    reload_id: Type.String(),
    kind: oneOf(["reload", "rollback"]),
    epoch: nullable(Type.Integer()),
    live_changed: Type.Boolean({ description: "Whether any rank's live bytes may have been changed by this reload" }),
    submission_id: Type.String(),
    fleet: Type.String(),
    weight_version: Type.String(),
    previous_weight_version: nullable(Type.String()),
    state: oneOf(RELOAD_STATES),
    status: oneOf(["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"]),
    pending_reason: nullable(Type.String()),
    superseded_by: nullable(Type.String()),
    recipe: oneOf(RECIPES),
    source: nullable(Type.String()),
    push: nullablePush,
    progress: Type.Object({ layers_done: Type.Integer(), layers_total: Type.Integer() }),
    layers: Type.Array(Type.Object({ name: Type.String(), ranks_done: Type.Integer() }), {
      description: "Ranks that have loaded each layer, in the plan's order",
    }),
    ranks: Type.Array(RankProgressAnswer),
    timing_ms: Type.Object({
      queued: nullable(Milliseconds),
      plan: nullable(Milliseconds),
      load: nullable(Milliseconds),
      finalize: nullable(Milliseconds),
      commit: nullable(Milliseconds),
      total: nullable(Milliseconds),
    }),
    engine_stopped_ms: nullable(Milliseconds),
    warnings: Type.Array(WarningAnswer),
    error: nullable(ErrorAnswer),
    metadata: Type.Record(Type.String(), Type.String()),
    created_at: Timestamp,
    finished_at: nullable(Timestamp),
  },
  { $id: "Reload" },
);
export type ReloadView = Static<typeof ReloadAnswer>;

export const ReloadListAnswer = Type.Object(
  { reloads: Type.Array(ReloadAnswer), next_cursor: nullable(Type.String()) },
  { $id: "ReloadList" },
);

export const PlanAnswer = Type.Object(
  {
    model_type: Type.String(),
    tensor_parallel_size: Type.Integer(),
    expert_parallel: Type.Boolean(),
    recipe: oneOf(RECIPES),
    layout_digest: Type.String(),
    source_digest: Type.String(),
    layers: Type.Array(
      Type.Object({
        name: Type.String(),
        job: Type.Integer({ description: "Index of the job a rank loads it in" }),
        kernel_tensors: Type.Integer(),
        read_bytes: Type.Integer({ description: "Read by the rank that reads most" }),
        held_bytes: Type.Integer({ description: "Written to its arena by the rank that holds most" }),
      }),
    ),
    ranks: Type.Array(
      Type.Object({
        rank: Type.Integer(),
        read_bytes: Type.Integer(),
        held_bytes: Type.Integer(),
        arena_bytes: Type.Integer(),
        peak_memory_bytes: Type.Integer({ description: "Estimate on the CPU: live, staging and scratch" }),
        device_memory_bytes: Type.Integer({
          description: "Estimate on a GPU, of its memory: live, staging and scratch",
        }),
      }),
    ),
    threads: Type.Integer({
      description: "Threads of a rank's core that the estimates count: the most of any rank of the fleet, else 16",
    }),
    jobs_per_rank: Type.Integer(),
    skipped: Type.Array(Type.Object({ name: Type.String(), reason: Type.String() })),
    warnings: Type.Array(WarningAnswer, { description: "What is odd about the source, and was put up with" }),
  },
  { $id: "Plan" },
);
export type PlanView = Static<typeof PlanAnswer>;

export const RankAnswer = Type.Object({
  replica: Type.Integer(),
  rank: Type.Integer(),
  incarnation: Type.String(),
  host: Type.String(),
  pid: Type.Integer(),
  device: Type.String(),
  version: nullable(Type.String({ description: "The release that its process runs; null: one that does not say" })),
  alive: Type.Boolean({ description: "Registered with the Redis that runs now, its lease valid" }),
  ready: Type.Boolean({ description: "It holds what the fleet has committed" }),
  drained: Type.Boolean({ description: "Its replica is drained: the others do not wait for it" }),
  weight_version: nullable(Type.String()),
  reload_id: nullable(Type.String()),
  epoch: nullable(Type.Integer()),
  arena_generation: nullable(Type.Integer()),
  arena_state: oneOf(["empty", "live", "swapping", "torn"]),
  arena_path: nullable(Type.String({ description: "The live file, on that host" })),
  control_path: nullable(Type.String()),
  undo_weight_version: nullable(Type.String()),
});

export const ROLLBACK_SOURCES = ["undo", "source"] as const;
export type RollbackSource = (typeof ROLLBACK_SOURCES)[number];

export const FleetAnswer = Type.Object(
  {
    fleet: Type.String(),
    replicas: Type.Integer(),
    tensor_parallel_size: Type.Integer(),
    expert_parallel: Type.Boolean({ description: "Ranks hold whole experts, not a part of each" }),
    epoch: Type.Integer(),
    weight_version: nullable(Type.String()),
    previous_weight_version: nullable(Type.String()),
    routable: Type.Boolean(),
    not_routable_reason: nullable(Type.String()),
    torn: Type.Boolean(),
    can_roll_back: Type.Boolean(),
    rollback_from: nullable(
      oneOf(ROLLBACK_SOURCES, {
        description: "`undo`: every rank still has the bytes, a swap brings them back; `source`: they are loaded again",
      }),
    ),
    rollback_version: nullable(Type.String()),
    active_reload_id: nullable(Type.String()),
    queued_reload_ids: Type.Array(Type.String()),
    drained_replicas: Type.Array(
      Type.Object({
        replica: Type.Integer(),
        state: oneOf(["out", "joining"], {
          description:
            "`joining`: it was asked back, or a rank of it has started again; it is in once all hold what is committed",
        }),
      }),
    ),
    has_hooks: Type.Boolean({ description: "Engines are paused while live bytes change" }),
    engines: Type.Object({
      state: oneOf(["running", "pausing", "paused", "resuming"]),
      reload_id: nullable(Type.String({ description: "The reload that they stand still for" })),
      error: nullable(ErrorAnswer),
    }),
    attached_engines: Type.Array(AttachedEngineAnswer, {
      description: "Engines that compute with the ranks' arenas, whatever hooks there are",
    }),
    ranks: Type.Array(RankAnswer),
  },
  { $id: "Fleet" },
);
export type FleetView = Static<typeof FleetAnswer>;

export const FleetListAnswer = Type.Object({ fleets: Type.Array(FleetAnswer) }, { $id: "FleetList" });

export const RoutableAnswer = Type.Object(
  { fleet: Type.String(), routable: Type.Boolean(), weight_version: nullable(Type.String()) },
  { $id: "Routable" },
);

export const ExportBody = Type.Object(
  { replica: Type.Integer({ minimum: 0, default: 0 }), rank: Type.Integer({ minimum: 0 }) },
  { ...closed, $id: "ExportRequest" },
);
export const ExportAnswer = Type.Object(
  {
    export_id: Type.String({ description: "By which its bytes can be read from any host, see readExport" }),
    host: Type.String({ description: "Where the file is" }),
    path: Type.String({ description: "A safetensors file that the caller may move away" }),
    kept_s: Type.Integer({ description: "It is removed so many seconds after it was made or last read" }),
    bytes: Type.Integer(),
    weight_version: Type.String(),
    arena_generation: Type.Integer(),
  },
  { $id: "Export" },
);
export type ExportView = Static<typeof ExportAnswer>;

/** RFC 9457 problem details, with our code. */
export const ProblemAnswer = Type.Object(
  {
    type: Type.String(),
    title: Type.String(),
    status: Type.Integer(),
    detail: Type.String(),
    instance: Type.String(),
    code: Type.String(),
    retryable: Type.Boolean(),
    details: Type.Record(Type.String(), Type.Unknown()),
  },
  { $id: "Problem" },
);

/** What the event stream of a reload carries, by event name. */
export interface ReloadEvents {
  /** Each state the reload enters. */
  state: { state: ReloadStateName; epoch: number | null; error: Static<typeof ErrorAnswer> | null };
  /** A rank's progress: some times a second, and when it is prepared and swapped. */
  progress: RankProgress;
  /** A job that failed and will be tried again. */
  retry: { replica: number; rank: number; layer: string; attempt: number; error: Static<typeof ErrorAnswer> };
  warning: WarningReport;
  /** A bucket of a push session that has been consumed, or is wanted again. */
  bucket: { bucket: number; state: BucketState };
}
export type ReloadEventName = keyof ReloadEvents;
