// Puts Redis, the queues and this folder's functions together as the `Reloads` that the routes call.

import { setTimeout as delay } from "node:timers/promises";
import type { Redis } from "ioredis";
import type { Logger } from "pino";
import { verifyFiles } from "../checkpoint/checkpoint-file.js";
import { readCheckpointTable } from "../checkpoint/checkpoint-table.js";
import { LayercastError } from "../contract/errors.js";
import { rankKey } from "../contract/jobs.js";
import type { FleetView, PlanRequest, PlanView, ReloadView } from "../contract/reload.js";
import { describePlan } from "../planner/describe-plan.js";
import { planReload } from "../planner/plan-reload.js";
import { openQueues } from "../queue/queues.js";
import { connectRedis } from "../redis.js";
import type { ReloadDeps } from "./deps.js";
import { openDriver, runControlJob } from "./drive-fleet.js";
import { type FleetSnapshot, openFleetStore } from "./fleet-store.js";
import { followEvents, openFollower } from "./follow-reload.js";
import { loadLayout, loadPlan } from "./plan-store.js";
import { cancel } from "./protocol/reload-transitions.js";
import { type FleetState, isTerminal } from "./protocol/state.js";
import { listReloads, readReload, type StoredReload } from "./record-store.js";
import type { ReloadFilter, Reloads } from "./reloads.js";
import { submitReload, submitRollback, unknownFleet } from "./submit-reload.js";
import { viewFleet, viewReload } from "./view.js";

export interface OpenReloads {
  reloads: Reloads;
  close(): Promise<void>;
}

const EXPORT_TIMEOUT_MS = 600_000;
const CLOSE_TIMEOUT_MS = 5_000;
const READY_TIMEOUT_MS = 1_000;

export async function openReloads(options: {
  redisUrl: string;
  sourceRoots: string[];
  log: Logger;
}): Promise<OpenReloads> {
  const { redisUrl, sourceRoots, log } = options;
  const connections: Redis[] = [];
  const connect = (role: "command" | "patient") => {
    const redis = connectRedis(redisUrl, role);
    redis.on("error", (error) => log.warn({ err: error }, "redis"));
    connections.push(redis);
    return redis;
  };
  const redis = connect("command");
  // BullMQ defines its scripts on the connections it is given, and every pipeline of such a one pays for them.
  const queues = openQueues(connect("command"), connect("patient"), (error) => log.warn({ err: error }, "queue"));
  const follower = await openFollower(connect("patient"));
  const deps: ReloadDeps = {
    redis,
    store: openFleetStore(redis),
    queues,
    follower,
    sourceRoots,
    swapsSent: new Map(),
    log,
  };
  await queues.consumeControl((job, isLast) => runControlJob(deps, job, isLast));
  const driver = openDriver(deps);
  return {
    reloads: reloadsOf(deps),
    async close() {
      // With Redis gone neither would end; the sweep of another orchestrator, or of the next life, goes on from the record.
      await Promise.race([driver.close().then(() => queues.close()), delay(CLOSE_TIMEOUT_MS, null, { ref: false })]);
      for (const connection of connections) connection.disconnect();
    },
  };
}

function reloadsOf(deps: ReloadDeps): Reloads {
  const { redis, store, follower } = deps;
  return {
    async submit(request) {
      const { id, created } = await submitReload(deps, request);
      return { reload: await viewOf(deps, await readReload(redis, id)), created };
    },
    plan: (request) => planOnly(deps, request),
    get: (id, waitMs, signal) => getReload(deps, id, waitMs, signal),
    list: (filter) => listViews(deps, filter),
    async cancel(id) {
      const { record } = await readReload(redis, id);
      await store.transact(record.fleet, (draft, { now }) => cancel(draft, id, now));
      return viewOf(deps, await readReload(redis, id));
    },
    async rollback(fleet, request) {
      const { id, created } = await submitRollback(deps, fleet, request);
      return { reload: await viewOf(deps, await readReload(redis, id)), created };
    },
    async *events(id, afterId, signal) {
      await readReload(redis, id);
      yield* followEvents(redis, follower, id, afterId, signal);
    },
    async fleets() {
      const names = (await store.fleets()).sort();
      return Promise.all(names.map(async (name) => viewKnownFleet(deps, await requireFleet(deps, name))));
    },
    fleet: async (name) => viewKnownFleet(deps, await requireFleet(deps, name)),
    routable: (name, minWeightVersion) => requireRoutable(deps, name, minWeightVersion),
    exportRank: (fleet, replica, rank) => exportRank(deps, fleet, replica, rank),
    async ready() {
      const pong = await Promise.race([redis.ping().catch(() => null), delay(READY_TIMEOUT_MS, null, { ref: false })]);
      return pong === "PONG";
    },
  };
}

async function viewOf(deps: ReloadDeps, stored: StoredReload): Promise<ReloadView> {
  const [layout, fleet] = await Promise.all([
    stored.plan === null ? null : loadLayout(deps.redis, stored.plan.layoutDigest),
    isTerminal(stored.record) ? null : deps.store.read(stored.record.fleet),
  ]);
  return viewReload(stored, layout, fleet);
}

async function getReload(deps: ReloadDeps, id: string, waitMs: number, signal: AbortSignal): Promise<ReloadView> {
  const until = Date.now() + waitMs;
  for (;;) {
    // Armed before reading, so that an end between the read and the wait is not slept through.
    const leftMs = until - Date.now();
    const changed = leftMs > 0 ? deps.follower.ended(id, Math.min(leftMs, POLL_MS), signal) : null;
    const stored = await readReload(deps.redis, id);
    if (changed === null || signal.aborted || isTerminal(stored.record)) return viewOf(deps, stored);
    await changed;
  }
}

/** A message may be missed; then a wait lasts this much longer at most. */
const POLL_MS = 1_000;

async function listViews(deps: ReloadDeps, { fleet, state, limit, cursor }: ReloadFilter) {
  const { reloads, nextCursor } = await listReloads(deps.redis, limit, cursor, (record) => {
    return (fleet === null || record.fleet === fleet) && (state === null || record.state === state);
  });
  return { reloads: await Promise.all(reloads.map((stored) => viewOf(deps, stored))), next_cursor: nextCursor };
}

async function planOnly(deps: ReloadDeps, request: PlanRequest): Promise<PlanView> {
  const fleet = request.fleet === undefined ? null : (await requireFleet(deps, request.fleet)).state;
  const tensorParallelSize = request.tensor_parallel_size ?? fleet?.topology?.tensorParallelSize;
  if (tensorParallelSize === undefined) {
    throw new LayercastError(
      "invalid_request",
      "give tensor_parallel_size, or a fleet whose ranks have registered",
      {},
    );
  }
  const { table, config } = await readCheckpointTable(request.source.uri, { allowedRoots: deps.sourceRoots });
  const { recipe, dtype, policy } = request;
  const plan = planReload({ table, config, tensorParallelSize, scheme: recipe.scheme, ignore: recipe.ignore, dtype });
  return describePlan(plan, policy.layers_per_job);
}

async function requireFleet(deps: ReloadDeps, name: string): Promise<FleetSnapshot> {
  const known = await deps.store.read(name);
  if (known === null) throw unknownFleet(name);
  return known;
}

async function viewKnownFleet(deps: ReloadDeps, { state, context }: FleetSnapshot): Promise<FleetView> {
  return viewFleet(state, context, await canRollBack(deps, state));
}

/** From undo on every rank, or else from the source as long as it is what it was. */
async function canRollBack({ redis }: ReloadDeps, { previous, ranks }: FleetState): Promise<boolean> {
  if (previous === null) return false;
  if (Object.values(ranks).every((rank) => rank.undo?.content === previous.content)) return true;
  try {
    const plan = await loadPlan(redis, previous.content);
    await verifyFiles(plan.source.files);
    return true;
  } catch {
    return false;
  }
}

async function requireRoutable(deps: ReloadDeps, name: string, minimum: string | null) {
  const { state, context } = await requireFleet(deps, name);
  const view = viewFleet(state, context, false);
  const weightVersion = view.weight_version;
  if (!view.routable) {
    throw new LayercastError("not_routable", `fleet ${name} is not routable: ${view.not_routable_reason}`, {
      reason: view.not_routable_reason,
      weight_version: weightVersion,
    });
  }
  if (minimum !== null && !reaches(weightVersion, minimum)) {
    throw new LayercastError(
      "not_routable",
      `fleet ${name} holds weight version ${weightVersion}, ${minimum} is wanted`,
      {
        weight_version: weightVersion,
        min_weight_version: minimum,
      },
    );
  }
  return { fleet: name, routable: true, weight_version: weightVersion };
}

/** Versions that are whole numbers are compared as such; any other must be the same. */
function reaches(version: string | null, minimum: string): boolean {
  if (version === minimum) return true;
  const wholeNumber = /^\d+$/;
  return (
    version !== null && wholeNumber.test(version) && wholeNumber.test(minimum) && BigInt(version) >= BigInt(minimum)
  );
}

async function exportRank(deps: ReloadDeps, fleet: string, replica: number, rank: number) {
  const { state } = await requireFleet(deps, fleet);
  const key = rankKey(replica, rank);
  const registered = state.ranks[key];
  if (registered === undefined) {
    throw new LayercastError("not_found", `fleet ${fleet} has no rank ${key} (replica/rank)`, { fleet, rank: key });
  }
  const { incarnation } = registered;
  const file = `${fleet}-${replica}-${rank}-${Date.now()}.safetensors`;
  const job = { kind: "export", fleet, file, rank: key, incarnation, retry: { attempts: 1, backoffMs: 0 } } as const;
  const { path, bytes, host, weightVersion, arenaGeneration } = await deps.queues.runExport(job, EXPORT_TIMEOUT_MS);
  return { host, path, bytes, weight_version: weightVersion, arena_generation: arenaGeneration };
}
