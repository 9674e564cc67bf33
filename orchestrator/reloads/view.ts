// What is stored as what is answered: records to ReloadView, fleets to FleetView. Pure.

import type { AttachedEngineView, EngineLease } from "../contract/engines.js";
import type { RankKey } from "../contract/jobs.js";
import type { Layout } from "../contract/plan.js";
import type { PushView } from "../contract/push.js";
import {
  type FleetView,
  RAY_STATUS,
  type RankProgress,
  type ReloadView,
  type RollbackSource,
} from "../contract/reload.js";
import { whyNotRoutable } from "../fleet/advance.js";
import { startingEngines } from "../fleet/engine-leases.js";
import type { RankReport, StoredReload } from "../fleet/record-store.js";
import {
  nextInQueue,
  queuedReloads,
  ranksNotLive,
  unpreparedRanks,
  waitsForRanks,
} from "../fleet/reload-transitions.js";
import {
  type Context,
  expectedRanks,
  type FleetState,
  isExpertParallel,
  isLive,
  isThere,
  type RankState,
  type ReloadRecord,
  replicasOf,
} from "../fleet/state.js";
import { kindOf } from "./source-kinds.js";

/** `layout` and `fleet` are null where they are no longer known or no longer matter. */
export function viewReload(
  { record, request, ranks }: StoredReload,
  layout: Layout | null,
  fleet: { state: FleetState; context: Context } | null,
  push: PushView | null,
): ReloadView {
  const reports = Object.values(ranks).sort(
    (a, b) => a.progress.replica - b.progress.replica || a.progress.rank - b.progress.rank,
  );
  const layers = viewLayers(layout, reports);
  const rankCount = Math.max(reports.length, fleet === null ? 0 : expectedRanks(fleet.state).length);
  return {
    reload_id: record.id,
    kind: record.kind,
    epoch: record.epoch,
    live_changed: record.liveChanged,
    submission_id: record.submissionId,
    fleet: record.fleet,
    weight_version: record.weightVersion,
    previous_weight_version: record.previousWeightVersion,
    state: record.state,
    status: RAY_STATUS[record.state],
    pending_reason: fleet === null ? null : pendingReason(record, fleet.state, fleet.context),
    superseded_by: record.supersededBy,
    recipe: request.recipe.scheme,
    source: request.source ? kindOf(request.source).shown(request.source) : null,
    push,
    progress: {
      layers_done: layers.reduce((sum, layer) => sum + layer.ranks_done, 0),
      layers_total: layers.length * rankCount,
    },
    layers,
    ranks: reports.map(({ progress }) => viewRank(progress, record, fleet?.state ?? null)),
    timing_ms: viewTimes(record),
    engine_stopped_ms: engineStoppedMs(record),
    warnings: record.warnings,
    error: record.error === null ? null : { ...record.error, details: { ...record.error.details } },
    metadata: request.metadata,
    created_at: new Date(record.times.created).toISOString(),
    finished_at: record.times.ended === null ? null : new Date(record.times.ended).toISOString(),
  };
}

function viewLayers(layout: Layout | null, reports: RankReport[]): ReloadView["layers"] {
  return (layout?.layers ?? []).map(({ name }, index) => ({
    name,
    ranks_done: reports.filter(({ layersDone }) => layersDone[index] === "1").length,
  }));
}

/** A rank whose process is gone while the reload runs is `lost`, whatever it said last. */
function viewRank(told: RankProgress, record: ReloadRecord, fleet: FleetState | null): RankProgress {
  // Reports that an older release stored do not count retries.
  const progress = { ...told, retries: told.retries ?? 0 };
  if (fleet === null || fleet.active !== record.id) return progress;
  const current = fleet.ranks[`${progress.replica}/${progress.rank}`];
  return current?.incarnation === progress.incarnation ? progress : { ...progress, state: "lost" };
}

function viewTimes({ times, tokens, state }: ReloadRecord): ReloadView["timing_ms"] {
  const { created, admitted, planned, decided, ended } = times;
  const between = (from: number | null, to: number | null) =>
    from === null || to === null ? null : roundMs(Math.max(0, to - from));
  const barriers = Object.values(tokens).map(({ at, finalizeMs }) => at - finalizeMs);
  const loaded = decided === null || barriers.length === 0 ? null : Math.min(decided, Math.max(...barriers));
  return {
    queued: between(created, admitted),
    plan: between(admitted, planned),
    load: between(planned, loaded),
    finalize: between(loaded, decided),
    commit: state === "committed" ? between(decided, ended) : null,
    total: between(created, ended),
  };
}

/** From the first pause's answer to the last resume's; without hooks from the first rank's swap to the last one's end. */
function engineStoppedMs({ swaps, engineStop, state }: ReloadRecord): number | null {
  if (engineStop !== null) return roundMs(engineStop.endedAt - engineStop.startedAt);
  const all = Object.values(swaps);
  if (state !== "committed" || all.length === 0) return null;
  return roundMs(Math.max(...all.map(({ endedAt }) => endedAt)) - Math.min(...all.map(({ startedAt }) => startedAt)));
}

function roundMs(ms: number): number {
  return Math.round(ms * 100) / 100;
}

/** What an unfinished reload is waiting for, in words. */
export function pendingReason(record: ReloadRecord, state: FleetState, context: Context): string | null {
  switch (record.state) {
    case "queued": {
      if (state.active !== null) return `reload_in_progress: waiting for reload ${state.active} to end`;
      const ranks = waitsForRanks(state, context);
      if (ranks !== null) return `fleet_incomplete: ${ranks}`;
      const first = nextInQueue(state);
      return first === null || first.id === record.id ? "waiting to be admitted" : `waiting behind reload ${first.id}`;
    }
    case "planning":
      return "reading the checkpoint's headers and planning";
    case "loading":
    case "finalizing": {
      if (state.engineStop?.reload === record.id) return "waiting for engines to pause";
      const wanted = record.push?.wanted ?? [];
      if (wanted.length > 0) return `waiting for wanted buckets ${wanted.join(", ")} to be sent again`;
      if (record.push && !record.push.finished) return "waiting for buckets, and for the push to be finished";
      const waiting = unpreparedRanks(state, record);
      if (waiting.length > 0) return `waiting for ranks ${waiting.join(", ")} to be prepared`;
      const starting = startingEngines(state);
      return starting.length > 0
        ? `waiting for engines to have started: ${starting.join(", ")}`
        : "waiting for the decision";
    }
    case "committing": {
      if (record.times.signalled === null) return "waiting for the decision to be on disk, and for engines to pause";
      const wanted = record.push?.wanted ?? [];
      if (wanted.length > 0) return `waiting for wanted buckets ${wanted.join(", ")} to be sent again`;
      const waiting = ranksNotLive(state, record);
      if (waiting.length > 0) return `waiting for ranks ${waiting.join(", ")} to swap${troubleOf(state, waiting)}`;
      return "waiting for engines to resume, and to be published";
    }
    default:
      return null;
  }
}

function troubleOf({ ranks }: FleetState, keys: RankKey[]): string {
  const trouble = keys.map((key) => ranks[key]?.trouble ?? null).find((found) => found !== null);
  return trouble ? `; ${trouble.code}: ${trouble.message}` : "";
}

/** `rollbackFrom`: where the rollback version would come from; null where it cannot be brought back. */
export function viewFleet(state: FleetState, context: Context, rollbackFrom: RollbackSource | null): FleetView {
  const reason = whyNotRoutable(state, context);
  return {
    fleet: state.fleet,
    replicas: state.topology?.replicas ?? 0,
    tensor_parallel_size: state.topology?.tensorParallelSize ?? 0,
    expert_parallel: isExpertParallel(state),
    epoch: state.epoch,
    weight_version: state.committed?.weightVersion ?? null,
    previous_weight_version: state.previous?.weightVersion ?? null,
    routable: reason === null,
    not_routable_reason: reason,
    torn: state.torn,
    can_roll_back: rollbackFrom !== null,
    rollback_from: rollbackFrom,
    rollback_version: state.previous?.weightVersion ?? null,
    active_reload_id: state.active,
    queued_reload_ids: queuedReloads(state).map(({ id }) => id),
    drained_replicas: replicasOf(state).flatMap((replica) => {
      const drained = state.drained[replica];
      return drained === undefined ? [] : [{ replica, state: drained }];
    }),
    has_hooks: state.hooks !== null,
    engines: viewEngines(state),
    attached_engines: viewAttachedEngines(state),
    ranks: Object.values(state.ranks)
      .sort((a, b) => a.replica - b.replica || a.rank - b.rank)
      .map((rank) => viewFleetRank(rank, state, context)),
  };
}

function viewEngines({ engineStop }: FleetState): FleetView["engines"] {
  if (engineStop === null) return { state: "running", reload_id: null, error: null };
  const { phase, reload, failure } = engineStop;
  return {
    state: phase,
    reload_id: reload,
    error: failure === null ? null : { ...failure, details: { ...failure.details } },
  };
}

/** What its ranks say of an engine may differ for a moment: it is what keeps it from serving, if anything does. */
const STATE_OF_ALL = ["gone", "waiting", "starting", "ready"] as const;

/** Each engine once, whatever number of ranks has it. */
export function viewAttachedEngines({ ranks }: Pick<FleetState, "ranks">): AttachedEngineView[] {
  const told = Object.values(ranks)
    .sort((a, b) => a.replica - b.replica || a.rank - b.rank)
    .flatMap(({ replica, rank, engines = [] }) => engines.map((lease) => ({ replica, rank, lease })));
  const ids = [...new Set(told.map(({ lease }) => lease.id))];
  return ids.map((id) => viewAttachedEngine(told.filter(({ lease }) => lease.id === id)));
}

function viewAttachedEngine(parts: { replica: number; rank: number; lease: EngineLease }[]): AttachedEngineView {
  const leases = parts.map(({ lease }) => lease);
  const state = STATE_OF_ALL.find((one) => leases.some((lease) => lease.state === one)) ?? "gone";
  const of = leases.find((lease) => lease.state === state) as EngineLease;
  const since = Math.max(...leases.filter((lease) => lease.state === state).map((lease) => lease.since));
  const stops = leases.flatMap(({ lastStop }) => lastStop ?? []);
  const [last] = stops.sort((a, b) => b.epoch - a.epoch || b.stopMs - a.stopMs);
  return {
    ...{ id: of.id, name: of.name, version: of.version, state, host: of.host, url: of.url },
    ranks: parts.map(({ replica, rank, lease }) => ({ replica, rank, pid: lease.pid })),
    since: new Date(since).toISOString(),
    last_stop:
      last === undefined
        ? null
        : {
            epoch: last.epoch,
            weight_version: last.weightVersion,
            stop_ms: roundMs(last.stopMs),
            still_ms: roundMs(last.stillMs),
          },
    trouble: leases.find(({ trouble }) => trouble !== null)?.trouble ?? null,
  };
}

function viewFleetRank(rank: RankState, state: FleetState, context: Context): FleetView["ranks"][number] {
  return {
    replica: rank.replica,
    rank: rank.rank,
    incarnation: rank.incarnation,
    host: rank.host,
    pid: rank.pid,
    device: rank.device,
    version: rank.version ?? null,
    alive: isThere(state, rank.key, context),
    ready: state.committed !== null && isLive(rank, state.committed),
    drained: state.drained[rank.replica] !== undefined,
    weight_version: rank.live.held?.weightVersion ?? null,
    reload_id: rank.live.held?.reload ?? null,
    epoch: rank.live.held?.epoch ?? null,
    arena_generation: rank.live.generation,
    arena_state: rank.live.state,
    arena_path: rank.arenaPath,
    control_path: rank.controlPath,
    undo_weight_version: rank.undo?.weightVersion ?? null,
  };
}
