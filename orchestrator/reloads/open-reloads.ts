// Puts Redis, the queues and this folder's functions together as the `Reloads` that the routes call.

import { randomBytes } from "node:crypto";
import { hostname } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import type { Redis } from "ioredis";
import type { Logger } from "pino";
import type { Checkpoint } from "../checkpoint/checkpoint-table.js";
import { LayercastError } from "../contract/errors.js";
import { KEYS } from "../contract/jobs.js";
import { type PlanRequest, type PlanView, type ReloadView, readSource } from "../contract/reload.js";
import { openFleetStore } from "../fleet/fleet-store.js";
import { openPlanStore } from "../fleet/plan-store.js";
import {
  listReloads,
  openRecordStore,
  readReloadState,
  type StoredReload,
  type StoredRequest,
} from "../fleet/record-store.js";
import { cancel } from "../fleet/reload-transitions.js";
import { openPushSessions } from "../fleet/session-store.js";
import { isTerminal } from "../fleet/state.js";
import { faultPoint } from "../host/fault-point.js";
import { connectRedis } from "../host/redis.js";
import { describePlan } from "../planner/describe-plan.js";
import { planReload } from "../planner/plan-reload.js";
import { openQueues } from "../queue/queues.js";
import { engineCaller } from "./call-engines.js";
import type { ReloadDeps } from "./deps.js";
import { openDisk } from "./disk.js";
import { type Driver, type DriverHost, openDriver, runControlJob } from "./drive-fleet.js";
import { fleetAnswers, requireFleet } from "./fleet-answers.js";
import { openFollower, readUntil } from "./follow-reload.js";
import { openHookHosts } from "./hook-hosts.js";
import { autoJobBytes, coreThreads, makePlan, plannedRanks } from "./make-plan.js";
import { openHeaderRoom } from "./push/header-room.js";
import { pushAnswers, viewPush } from "./push/push-answers.js";
import { openSpool } from "./push/spool.js";
import { trimSpool } from "./push/trim-spool.js";
import { openEventReader } from "./read-events.js";
import { openExportReader } from "./read-export.js";
import type { ReloadFilter, Reloads } from "./reloads.js";
import { kindOf } from "./source-kinds.js";
import { openSourcePool } from "./sources/source-pool.js";
import type { SourceFiles } from "./sources/source-work.js";
import { submitReload, submitRollback } from "./submit-reload.js";
import { trimLayouts } from "./trim-layouts.js";
import { trimFleets, trimRecords } from "./trim-records.js";
import { openTurns } from "./turns.js";
import { viewReload } from "./view.js";

export interface OpenReloads {
  /** Answers from the start on; while Redis does not, with its absence. */
  reloads: Reloads;
  /** Drives reloads from here on. Rejects when Redis refuses that. */
  begin(): Promise<void>;
  close(): Promise<void>;
}

/** A request to submit waits so long for those before it; a client's own limit is a minute. */
const SUBMIT_WAIT_MS = 30_000;
const CLOSE_TIMEOUT_MS = 5_000;
const READY_TIMEOUT_MS = 1_000;
const PROBE_KEPT_MS = 1_000;

export async function openReloads(options: {
  redisUrl: string;
  sourceRoots: string[];
  /** Where buckets of pushes are kept. */
  spoolDirectory: string;
  /** Hosts that hooks may be sent to, as openHookHosts() takes them. */
  hookHosts: readonly string[];
  log: Logger;
}): Promise<OpenReloads> {
  const { redisUrl, log } = options;
  const sources = openSourcePool(options.sourceRoots);
  const hookHosts = openHookHosts(options.hookHosts);
  await faultPoint("orchestrator.starting");
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
  const follower = openFollower(connect("patient"));
  const name = `${hostname()}.${process.pid}.${randomBytes(4).toString("hex")}`;
  const deps: ReloadDeps = {
    name,
    redis,
    store: openFleetStore(redis),
    queues,
    plans: openPlanStore(redis),
    records: openRecordStore(redis),
    makePlan: async (request, state, reload) =>
      makePlan(request, state, await readStored(redis, sources, request, reload)),
    disk: openDisk(redis, () => connect("patient")),
    hookHosts,
    headerRoom: openHeaderRoom(),
    callEngines: engineCaller(hookHosts),
    sessions: openPushSessions(redis),
    spool: openSpool(options.spoolDirectory, sources.keepFile),
    sources,
    spooling: new Map(),
    submitting: openTurns(SUBMIT_WAIT_MS),
    follower,
    exports: openExportReader({ redis, connect: () => connect("patient"), name }),
    swapsSent: new Map(),
    log,
  };
  let driver: Driver | null = null;
  const surroundings: DriverHost = {
    every(ms, call) {
      const timer = setInterval(call, ms);
      return () => clearInterval(timer);
    },
    onFleetChanged: follower.onFleetChanged,
    trim: openTrim(deps),
  };
  return {
    reloads: reloadsOf(deps),
    async begin() {
      await follower.listen();
      await queues.consumeControl((job, isLast) => runControlJob(deps, job, isLast));
      driver = openDriver(deps, surroundings);
    },
    async close() {
      // With Redis gone neither would end; the sweep of another orchestrator, or of the next life, goes on from the record.
      const closed = Promise.resolve(driver?.close()).then(() => queues.close());
      await Promise.race([closed, delay(CLOSE_TIMEOUT_MS, null, { ref: false })]);
      sources.close();
      for (const connection of connections) connection.disconnect();
    },
  };
}

/** Each look at all fleets removes a little; once a minute it also looks for what a look at every record must find. */
function openTrim(deps: ReloadDeps): () => Promise<void> {
  const { redis, store, log } = deps;
  let thoroughAt = 0;
  const trimSpoolOnce = oneAtATime(() => trimSpool(deps));
  return async () => {
    await trimRecords(redis, store);
    // Beside: a spool that hangs takes one thread, and neither one each second nor what follows.
    void trimSpoolOnce().catch((error: unknown) =>
      log.warn({ err: error }, "trimming the spool failed; a sweep tries again"),
    );
    if (performance.now() < thoroughAt) return;
    thoroughAt = performance.now() + THOROUGH_EVERY_MS;
    await trimFleets(redis, store);
    await trimLayouts(redis, store);
  };
}

const THOROUGH_EVERY_MS = 60_000;

/** Whoever calls while it runs is given what runs. */
function oneAtATime(run: () => Promise<void>): () => Promise<void> {
  const running = new Set<Promise<void>>();
  return () => {
    const [before] = running;
    if (before !== undefined) return before;
    const now = run().finally(() => running.delete(now));
    running.add(now);
    return now;
  };
}

function reloadsOf(deps: ReloadDeps): Reloads {
  const { redis, store, follower } = deps;
  const reader = openEventReader(redis, follower);
  return {
    async submit(request) {
      const { id, created } = await submitReload(deps, request);
      return { reload: await viewOf(deps, await deps.records.read(id)), created };
    },
    plan: (request) => planOnly(deps, request),
    state: (id) => readReloadState(redis, id),
    get: (id, waitMs, signal) => getReload(deps, id, waitMs, signal),
    list: (filter) => listViews(deps, filter),
    async cancel(id) {
      const { record } = await deps.records.read(id);
      await store.transact(record.fleet, (draft, { now }) => cancel(draft, id, now));
      return viewOf(deps, await deps.records.read(id));
    },
    async rollback(fleet, request) {
      const { id, created } = await submitRollback(deps, fleet, request);
      return { reload: await viewOf(deps, await deps.records.read(id)), created };
    },
    events: (id, afterId, signal) => reader.follow(id, afterId, signal),
    ...fleetAnswers(deps),
    ...pushAnswers(deps),
    async ready() {
      const written = redis.set(KEYS.probe, "", "PX", PROBE_KEPT_MS); // one that takes no writes serves nobody
      return (await Promise.race([written, delay(READY_TIMEOUT_MS, null, { ref: false })])) === "OK";
    },
  };
}

async function viewOf(deps: ReloadDeps, stored: StoredReload): Promise<ReloadView> {
  const [layout, fleet, push] = await Promise.all([
    stored.plan === null ? null : deps.plans.mapping(stored.plan.mappingDigest),
    isTerminal(stored.record) ? null : deps.store.read(stored.record.fleet),
    viewPush(deps.sessions, stored),
  ]);
  return viewReload(stored, layout, fleet, push);
}

async function getReload(deps: ReloadDeps, id: string, waitMs: number, signal: AbortSignal): Promise<ReloadView> {
  const wait = { reload: id, waitMs, pollMs: POLL_MS, signal };
  const read = () => deps.records.read(id);
  return viewOf(deps, await readUntil(wait, deps.follower.ended, read, ({ record }) => isTerminal(record)));
}

const POLL_MS = 1_000;

async function listViews(deps: ReloadDeps, filter: ReloadFilter) {
  const { fleet, state, view } = filter;
  const { reloads, nextCursor } = await listReloads(deps.redis, filter, (record) => {
    return (fleet === null || record.fleet === fleet) && (state === null || record.state === state);
  });
  if (view === "summary") return { reloads: await viewSummaries(deps, reloads), next_cursor: nextCursor };
  return { reloads: await Promise.all(reloads.map((stored) => viewOf(deps, stored))), next_cursor: nextCursor };
}

/** Why a reload waits is in its fleet's document, which is read once for all of them. */
async function viewSummaries({ store }: ReloadDeps, reloads: StoredReload[]): Promise<ReloadView[]> {
  const waiting = reloads.filter(({ record }) => !isTerminal(record)).map(({ record }) => record.fleet);
  const names = [...new Set(waiting)];
  const fleets = new Map(await Promise.all(names.map(async (name) => [name, await store.read(name)] as const)));
  return reloads.map((stored) => {
    const { record } = stored;
    return viewReload(stored, null, isTerminal(record) ? null : (fleets.get(record.fleet) ?? null), null);
  });
}

/** What the reload's weights come from, as its request names it. */
async function readStored(
  redis: Redis,
  sources: SourceFiles,
  { source }: StoredRequest,
  reload: string,
): Promise<Checkpoint> {
  if (!source) throw new LayercastError("internal", `reload ${reload} is to be planned, and has no source`);
  return kindOf(source).readStored({ redis, sources }, source, reload);
}

async function planOnly(deps: ReloadDeps, request: PlanRequest): Promise<PlanView> {
  const fleet = request.fleet === undefined ? null : (await requireFleet(deps, request.fleet)).state;
  const ranks = plannedRanks(request, fleet);
  const source = readSource(request.source);
  const { table, config } = await kindOf(source).read(deps.sources, source);
  const { recipe, dtype, policy } = request;
  const plan = planReload({ table, config, ...ranks, scheme: recipe.scheme, ignore: recipe.ignore, dtype });
  const known = fleet ?? { ranks: {} };
  return describePlan(plan, {
    layersPerJob: policy.layers_per_job,
    autoJobBytes: autoJobBytes(known),
    threads: coreThreads(known),
  });
}
