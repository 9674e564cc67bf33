// Answers of the API as the CLI's tests need them.

import type { PushView, RankPush } from "../../orchestrator/contract/push.js";
import type { FleetView, PlanView, RankProgress, ReloadView } from "../../orchestrator/contract/reload.js";

export function rankProgress(rank: number, changes: Partial<RankProgress> = {}): RankProgress {
  return {
    replica: 0,
    rank,
    incarnation: `incarnation-${rank}`,
    state: "loading",
    layers_done: 0,
    attempts: 0,
    retries: 0,
    bytes_read: 0,
    bytes_written: 0,
    read_ms: 0,
    place_ms: 0,
    quantize_ms: 0,
    write_ms: 0,
    finalize_ms: 0,
    swap_ms: 0,
    peak_memory_bytes: 0,
    pinned_bytes: 0,
    push: null,
    ...changes,
  };
}

export function reloadView(changes: Partial<ReloadView> = {}): ReloadView {
  return {
    reload_id: "reload-1",
    kind: "reload",
    epoch: 1,
    live_changed: false,
    submission_id: "step-120",
    fleet: "default",
    weight_version: "120",
    previous_weight_version: null,
    state: "loading",
    status: "RUNNING",
    pending_reason: null,
    superseded_by: null,
    recipe: "fp8-channel",
    source: "file:///checkpoints/step-120",
    push: null,
    progress: { layers_done: 0, layers_total: 8 },
    layers: [0, 1, 2, 3].map((layer) => ({ name: `model.layers.${layer}`, ranks_done: 0 })),
    ranks: [rankProgress(0), rankProgress(1)],
    timing_ms: { queued: 1, plan: 2, load: null, finalize: null, commit: null, total: null },
    engine_stopped_ms: null,
    warnings: [],
    error: null,
    metadata: {},
    created_at: "2026-01-01T00:00:00.000Z",
    finished_at: null,
    ...changes,
  };
}

export function rankPush(hostBytes: number, peakBytes: number): RankPush {
  return {
    buckets_taken: 3,
    buffers: {
      host_bytes: hostBytes,
      device_bytes: 0,
      peak_host_bytes: peakBytes,
      peak_device_bytes: 0,
      modules: [],
      module_count: 0,
    },
    paths: { whole: 4, streamed: 5, buffered: 6 },
  };
}

export function pushView(changes: Partial<PushView> = {}): PushView {
  const buckets = { accepted: 4, consumed: 3, wanted: [] };
  return { retain: "spool", partial: false, finished: false, buckets, ...changes };
}

export const COMMITTED = reloadView({
  state: "committed",
  status: "SUCCEEDED",
  progress: { layers_done: 8, layers_total: 8 },
  timing_ms: { queued: 1, plan: 2, load: 20, finalize: 3, commit: 4, total: 30 },
  engine_stopped_ms: 1.5,
});

export const FAILED = reloadView({
  state: "failed",
  status: "FAILED",
  error: { code: "non_finite_weights", message: "lm_head.weight holds NaN at [3, 4]", retryable: false, details: {} },
});

export const FLEET: FleetView = {
  fleet: "default",
  replicas: 1,
  tensor_parallel_size: 2,
  expert_parallel: false,
  epoch: 3,
  weight_version: "120",
  previous_weight_version: "119",
  routable: true,
  not_routable_reason: null,
  torn: false,
  can_roll_back: true,
  rollback_from: "undo",
  rollback_version: "119",
  active_reload_id: null,
  queued_reload_ids: [],
  drained_replicas: [],
  has_hooks: false,
  engines: { state: "running", reload_id: null, error: null },
  attached_engines: [],
  ranks: [],
};

export const RANK: FleetView["ranks"][number] = {
  replica: 0,
  rank: 0,
  incarnation: "incarnation-0",
  host: "host-a",
  pid: 100,
  device: "cpu",
  version: "0.1.0",
  alive: true,
  ready: true,
  drained: false,
  weight_version: "120",
  reload_id: "reload-1",
  epoch: 3,
  arena_generation: 6,
  arena_state: "live",
  arena_path: "/run/default/replica-0/rank-0/live.safetensors",
  control_path: "/run/default/replica-0/rank-0/control",
  undo_weight_version: "119",
};

export const PLAN: PlanView = {
  model_type: "deepseek_v3",
  tensor_parallel_size: 16,
  expert_parallel: false,
  recipe: "as-stored",
  layout_digest: "d",
  source_digest: "s",
  layers: [],
  ranks: [],
  jobs_per_rank: 61,
  threads: 16,
  skipped: [],
  warnings: [],
};
