// A Reloads without Redis: each function answers with a fixed view unless a test gives its own.

import { Writable } from "node:stream";
import { pino } from "pino";
import type { AttachedEngineView } from "../../orchestrator/contract/engines.js";
import type { HooksView } from "../../orchestrator/contract/hooks.js";
import type { BucketView, PushView, RankPush } from "../../orchestrator/contract/push.js";
import type { FleetView, PlanView, RankProgress, ReloadView } from "../../orchestrator/contract/reload.js";
import { createMetrics } from "../../orchestrator/metrics.js";
import type { ReloadEvent, Reloads } from "../../orchestrator/reloads/reloads.js";
import type { App } from "../../orchestrator/routes/app.js";
import type { BodyPace } from "../../orchestrator/routes/body-progress.js";
import { buildServer } from "../../orchestrator/server.js";

export const rankProgress = (rank: number, fields: Partial<RankProgress> = {}): RankProgress => ({
  replica: 0,
  rank,
  incarnation: `inc-${rank}`,
  state: "loading",
  layers_done: 1,
  attempts: 1,
  retries: 0,
  bytes_read: 1000,
  bytes_written: 500,
  read_ms: 1,
  place_ms: 1,
  quantize_ms: 1,
  write_ms: 1,
  finalize_ms: 0,
  swap_ms: 0,
  peak_memory_bytes: 1 << 20,
  pinned_bytes: 0,
  push: null,
  ...fields,
});

export const pushView: PushView = {
  ...{ retain: "spool", partial: false, finished: false },
  buckets: { accepted: 3, consumed: 1, wanted: [] },
};

export const rankPush: RankPush = {
  buckets_taken: 2,
  buffers: {
    ...{ host_bytes: 4096, device_bytes: 0, peak_host_bytes: 8192, peak_device_bytes: 0 },
    modules: [{ module: "model.layers.0.mlp.gate_up_proj", host_bytes: 4096, device_bytes: 0 }],
    module_count: 1,
  },
  paths: { whole: 3, streamed: 1, buffered: 2 },
};

export const reloadView = (fields: Partial<ReloadView> = {}): ReloadView => ({
  reload_id: "rl-1",
  kind: "reload",
  epoch: 1,
  live_changed: false,
  submission_id: "run7-step120",
  fleet: "default",
  weight_version: "120",
  previous_weight_version: null,
  state: "loading",
  status: "RUNNING",
  pending_reason: null,
  superseded_by: null,
  recipe: "fp8-channel",
  source: "/ckpt/step120",
  push: null,
  progress: { layers_done: 2, layers_total: 4 },
  layers: [
    { name: "model.layers.0", ranks_done: 2 },
    { name: "model.layers.1", ranks_done: 0 },
  ],
  ranks: [rankProgress(0), rankProgress(1)],
  timing_ms: { queued: 1, plan: 2, load: null, finalize: null, commit: null, total: null },
  engine_stopped_ms: null,
  warnings: [],
  error: null,
  metadata: {},
  created_at: "2026-01-01T00:00:00.000Z",
  finished_at: null,
  ...fields,
});

export const committedView = (fields: Partial<ReloadView> = {}): ReloadView =>
  reloadView({
    state: "committed",
    status: "SUCCEEDED",
    live_changed: true,
    timing_ms: { queued: 1, plan: 2, load: 30, finalize: 4, commit: 5, total: 42 },
    engine_stopped_ms: 3,
    finished_at: "2026-01-01T00:00:01.000Z",
    ...fields,
  });

export const planView: PlanView = {
  model_type: "qwen3",
  tensor_parallel_size: 2,
  expert_parallel: false,
  recipe: "fp8-channel",
  layout_digest: "ab".repeat(32),
  source_digest: "cd".repeat(32),
  layers: [{ name: "model.layers.0", job: 0, kernel_tensors: 8, read_bytes: 1000, held_bytes: 500 }],
  ranks: [
    {
      rank: 0,
      read_bytes: 1000,
      held_bytes: 500,
      arena_bytes: 4096,
      peak_memory_bytes: 8192,
      device_memory_bytes: 8192,
    },
  ],
  threads: 16,
  jobs_per_rank: 1,
  skipped: [],
  warnings: [],
};

export const bucketView = (fields: Partial<BucketView> = {}): BucketView => ({
  reload_id: "rl-1",
  bucket: 0,
  state: "pending",
  bytes: 1000,
  tensors: 3,
  waiting_for: ["0/0", "0/1"],
  ...fields,
});

const rankView = (rank: number): FleetView["ranks"][number] => ({
  replica: 0,
  rank,
  incarnation: `inc-${rank}`,
  host: "host-a",
  pid: 100 + rank,
  device: "cpu",
  version: "0.1.0",
  alive: true,
  ready: true,
  drained: false,
  weight_version: "119",
  reload_id: "rl-0",
  epoch: 1,
  arena_generation: 2,
  arena_state: "live",
  arena_path: `/run/default/replica-0/rank-${rank}/live.safetensors`,
  control_path: `/run/default/replica-0/rank-${rank}/control`,
  undo_weight_version: "118",
});

/** One that computes with both ranks of a replica. */
export const attachedEngine = (fields: Partial<AttachedEngineView> = {}): AttachedEngineView => ({
  ...{ id: "e-0", name: "vllm", version: "0.26.0", state: "ready", host: "gpu-1", url: "http://gpu-1:8000" },
  ranks: [0, 1].map((rank) => ({ replica: 0, rank, pid: 50 + rank })),
  since: "2026-01-01T00:00:00.000Z",
  last_stop: { epoch: 3, weight_version: "120", stop_ms: 21.4, still_ms: 18.9 },
  trouble: null,
  ...fields,
});

export const fleetView = (fields: Partial<FleetView> = {}): FleetView => ({
  fleet: "default",
  replicas: 1,
  tensor_parallel_size: 2,
  expert_parallel: false,
  epoch: 1,
  weight_version: "119",
  previous_weight_version: "118",
  routable: true,
  not_routable_reason: null,
  torn: false,
  can_roll_back: true,
  rollback_from: "undo",
  rollback_version: "118",
  active_reload_id: null,
  queued_reload_ids: [],
  drained_replicas: [],
  has_hooks: true,
  engines: { state: "running", reload_id: null, error: null },
  attached_engines: [],
  ranks: [rankView(0), rankView(1)],
  ...fields,
});

export const EXPORT_ID = "0-1-0123456789abcdef0123456789abcdef";

export const hooksView: HooksView = {
  pause: { url: "http://engine:8000/pause", method: "POST", body: null },
  resume: { url: "http://engine:8000/resume", method: "POST", body: null },
  timeout_ms: 30_000,
  on_failure: "abort",
};

export function fakeReloads(own: Partial<Reloads> = {}): Reloads {
  const get = own.get ?? (async () => reloadView());
  return {
    submit: async () => ({ reload: reloadView(), created: true }),
    plan: async () => planView,
    get,
    state: async (id) => (await get(id, 0, new AbortController().signal)).state,
    list: async () => ({ reloads: [reloadView()], next_cursor: null }),
    cancel: async () => reloadView({ state: "cancelled", status: "STOPPED" }),
    postBucket: async () => bucketView(),
    putBucket: async (_, bucket) => bucketView({ bucket }),
    bucket: async (_, bucket) => bucketView({ bucket, state: "consumed", waiting_for: [] }),
    expectedTensors: async () => ({ tensors: [] }),
    finish: async () => {},
    rollback: async () => ({ reload: reloadView({ kind: "rollback" }), created: true }),
    events: () => eventsOf([]),
    fleets: async () => [fleetView()],
    fleet: async () => fleetView(),
    routable: async (fleet) => ({ fleet, routable: true, weight_version: "119" }),
    setHooks: async () => hooksView,
    hooks: async () => hooksView,
    clearHooks: async () => {},
    drain: async () => fleetView(),
    undrain: async () => fleetView(),
    exportRank: async () => ({
      export_id: EXPORT_ID,
      kept_s: 3_600,
      host: "host-a",
      path: "/run/x.safetensors",
      bytes: 10,
      weight_version: "119",
      arena_generation: 2,
    }),
    exportSize: async () => 10,
    async *readExport(_fleet, _id, from, to) {
      yield Buffer.from("0123456789").subarray(from, to);
    },
    removeExport: async () => {},
    ready: async () => true,
    ...own,
  };
}

export async function* eventsOf(events: readonly ReloadEvent[]): AsyncGenerator<ReloadEvent> {
  yield* events;
}

/** A promise that something has happened, and the way to say so. */
export function signalled(): { promise: Promise<void>; resolve: () => void } {
  let resolve = () => {};
  const promise = new Promise<void>((settle) => {
    resolve = settle;
  });
  return { promise, resolve };
}

export interface TestServer {
  app: App;
  /** Behaves from now on as given, and as the fake does in all else. */
  behave(own: Partial<Reloads>): void;
  /** Log lines written so far. */
  logged: Record<string, unknown>[];
}

export async function testServer(
  own: Partial<Reloads> = {},
  options: { token?: string; heartbeatMs?: number; bodyPace?: BodyPace } = {},
): Promise<TestServer> {
  const logged: Record<string, unknown>[] = [];
  const lines = new Writable({
    write(line, _encoding, done) {
      logged.push(JSON.parse(String(line)));
      done();
    },
  });
  const reloads = fakeReloads(own);
  const app = await buildServer({
    reloads,
    log: pino({ level: "debug" }, lines),
    metrics: createMetrics(reloads),
    token: options.token ?? null,
    ...(options.heartbeatMs === undefined ? {} : { heartbeatMs: options.heartbeatMs }),
    ...(options.bodyPace === undefined ? {} : { bodyPace: options.bodyPace }),
  });
  return { app, logged, behave: (now) => Object.assign(reloads, fakeReloads(now)) };
}
