// One rank's process. Its life:
//   starting      takes the arena's lock, attaches what is there, registers: the fleet is not routable from here
//   catching_up   loads what the fleet holds; what it cannot load it says, and tries again while no reload is at work
//   ready         takes jobs, two in flight, so that reading one overlaps quantizing the other
//   draining      takes no more jobs, ends those it has, leaves the fleet
//   stopped

import { randomBytes } from "node:crypto";
import { mkdirSync } from "node:fs";
import { hostname } from "node:os";
import { join, resolve } from "node:path";
import { Worker } from "bullmq";
import type { Redis } from "ioredis";
import type { Logger } from "pino";
import { loadNative } from "../native/native.js";
import { LayercastError } from "../orchestrator/contract/errors.js";
import {
  CHANNELS,
  type FleetMessage,
  KEY_PREFIX,
  type RankJob,
  rankKey,
  rankQueue,
} from "../orchestrator/contract/jobs.js";
import { backoffStrategy, throwingForTheQueue } from "../orchestrator/queue/retry.js";
import { connectRedis } from "../orchestrator/redis.js";
import { openFleetStore } from "../orchestrator/reloads/fleet-store.js";
import { loadLayout } from "../orchestrator/reloads/plan-store.js";
import { leave, register } from "../orchestrator/reloads/protocol/rank-transitions.js";
import { activeReload } from "../orchestrator/reloads/protocol/state.js";
import { catchUp } from "./catch-up.js";
import type { Owner } from "./ledger.js";
import { openNativeWork } from "./native-work.js";
import { type Rank, reportKeeper, tellArena, undoOf } from "./rank.js";
import { openRankArena } from "./rank-arena.js";
import { runJob, swapDecided } from "./run-job.js";
import { openStagingOwner } from "./staging.js";
import { takeLock } from "./take-lock.js";

export interface WorkerOptions {
  fleet: string;
  replica: number;
  replicas: number;
  rank: number;
  tensorParallelSize: number;
  device: string;
  runDir: string;
  redisUrl: string;
  log: Logger;
  /** The process must end: another incarnation has taken over, or a native thread is stuck. */
  onFatal: (reason: string) => void;
}

export interface RunningWorker {
  /** Drains and leaves. */
  stop(): Promise<void>;
}

/** The rank is taken for gone this long after its last sign of life, by Redis's clock. */
const LEASE_MS = 5_000;
const HEARTBEAT_MS = 1_000;
const JOBS_IN_FLIGHT = 2;
/** Generous: native work never blocks the event loop, and a dead incarnation's queue is not waited for. */
const JOB_LOCK_MS = 30_000;

export async function startWorker(options: WorkerOptions): Promise<RunningWorker> {
  const { log, fleet, onFatal } = options;
  const connections = [connectRedis(options.redisUrl, "command"), connectRedis(options.redisUrl, "patient")] as const;
  const [redis, patient] = connections;
  const subscriber = connectRedis(options.redisUrl, "patient");
  for (const connection of [...connections, subscriber]) {
    connection.on("error", (error) => log.warn({ err: error }, "redis"));
  }
  const rank = await openRank(options, redis);
  await joinFleet(rank, options);
  let behind = true;
  let catchingUp = false;
  const heartbeat = setInterval(() => {
    beat().catch((error: unknown) => log.warn({ err: error }, "the heartbeat failed"));
  }, HEARTBEAT_MS);
  await heedFleet(rank, subscriber);
  await catchUpOnce();
  const jobs = await takeJobs(rank, patient);
  rank.log.info({ threads: rank.core.threads }, "ready");

  return {
    async stop() {
      rank.log.info("draining");
      await jobs.close();
      clearInterval(heartbeat);
      await rank.store
        .transact(fleet, (draft) => leave(draft, rank.key, rank.incarnation))
        .catch((error: unknown) => {
          log.warn({ err: error }, "leaving the fleet failed; its lease will run out");
        });
      for (const connection of [...connections, subscriber]) connection.disconnect();
      rank.arena.close();
    },
  };

  async function beat(): Promise<void> {
    await rank.store.renewLease(fleet, rank.key, rank.incarnation, LEASE_MS);
    const known = (await rank.store.read(fleet))?.state ?? null;
    const registered = known?.ranks[rank.key];
    if (registered === undefined) return joinFleet(rank, options); // Redis came back without us
    if (registered.incarnation !== rank.incarnation) return onFatal("another incarnation of this rank has registered");
    const active = known === null ? null : activeReload(known);
    if (behind && !catchingUp && (active === null || active.state === "committing")) await catchUpOnce();
  }

  async function catchUpOnce(): Promise<void> {
    catchingUp = true;
    try {
      behind = !(await catchUp(rank));
    } finally {
      catchingUp = false;
    }
  }
}

async function openRank(options: WorkerOptions, redis: Redis): Promise<Rank> {
  const { fleet, replica, rank, onFatal } = options;
  if (options.device !== "cpu") {
    throw new LayercastError(
      "invalid_request",
      `device ${options.device} is not available: this build has the cpu device`,
      {
        device: options.device,
      },
    );
  }
  const core = loadNative();
  const key = rankKey(replica, rank);
  const incarnation = `${Date.now().toString(36)}${randomBytes(3).toString("hex")}`;
  const log = options.log.child({ fleet, replica, rank, incarnation });
  const directory = join(resolve(options.runDir), fleet, `replica-${replica}`, `rank-${rank}`);
  mkdirSync(directory, { recursive: true });
  await takeLock(core, join(directory, "lock"), (pid) => log.warn({ pid }, "ending the process that holds this arena"));
  const poison = process.env.LAYERCAST_POISON === "1";
  const arena = await openRankArena({ core, directory, poison, findLayout: (digest) => loadLayout(redis, digest) });
  const work = openNativeWork(core, (what) => onFatal(`${what} does not stop`));
  const staging = openStagingOwner({ core, arena, work, rank });
  const report = reportKeeper(redis, log, { replica, rank, incarnation });
  const store = openFleetStore(redis);
  store.onWritten((_, entered) => {
    for (const { id, epoch, state, error } of entered) log.info({ reload: id, epoch, error }, state);
  });
  return {
    fleet,
    key,
    replica,
    rank,
    incarnation,
    host: hostname(),
    core,
    redis,
    store,
    arena,
    staging,
    log,
    swapping: Promise.resolve(),
    report,
  };
}

/** Lease first, so that the registration is of a living rank. */
async function joinFleet(rank: Rank, { replicas, tensorParallelSize, device }: WorkerOptions): Promise<void> {
  const { fleet, key, incarnation, arena } = rank;
  await rank.store.renewLease(fleet, key, incarnation, LEASE_MS);
  await rank.store.transact(fleet, (draft, context) =>
    register(
      draft,
      {
        key,
        replica: rank.replica,
        rank: rank.rank,
        incarnation,
        host: rank.host,
        pid: process.pid,
        device,
        live: arena.liveState(),
        undo: undoOf(rank),
        arenaPath: arena.livePath,
        controlPath: arena.controlPath,
        trouble: null,
        replicas,
        tensorParallelSize,
      },
      context,
    ),
  );
}

/** What the fleet's messages mean for what this rank has in staging: decided, so swap; ended, so give it up. */
async function heedFleet(rank: Rank, subscriber: Redis): Promise<void> {
  const warn = (error: unknown) =>
    rank.log.warn({ err: error }, "heeding a message failed; jobs will do what it asked for");
  subscriber.on("message", (_channel: string, text: string) => {
    const { fleet, active, decided } = JSON.parse(text) as FleetMessage;
    const { staging } = rank.staging.ledger();
    if (fleet !== rank.fleet || !("owner" in staging)) return;
    if (staging.owner.reload !== active) releaseIfEnded(rank, staging.owner).catch(warn);
    else if (decided && staging.kind === "prepared") swapDecided(rank, staging.owner).catch(warn);
  });
  await subscriber.subscribe(CHANNELS.fleet);
}

async function releaseIfEnded(rank: Rank, owner: Owner): Promise<void> {
  const known = await rank.store.read(rank.fleet);
  const active = known === null ? null : activeReload(known.state);
  const committed = known?.state.committed ?? null;
  if (active?.id === owner.reload || committed?.epoch === owner.epoch) return;
  await rank.staging.release(owner);
  if (undoOf(rank) !== null) await tellArena(rank, null);
}

async function takeJobs(rank: Rank, connection: Redis): Promise<Worker> {
  const worker = new Worker<RankJob>(
    rankQueue(rank.fleet, rank.key, rank.incarnation),
    (job) => throwingForTheQueue(job, (isLast) => runJob(rank, job.data, job.attemptsMade + 1, isLast)),
    {
      connection,
      prefix: KEY_PREFIX,
      concurrency: JOBS_IN_FLIGHT,
      lockDuration: JOB_LOCK_MS,
      maxStalledCount: 10,
      settings: { backoffStrategy },
    },
  );
  worker.on("error", (error) => rank.log.warn({ err: error }, "queue"));
  await worker.waitUntilReady();
  return worker;
}
