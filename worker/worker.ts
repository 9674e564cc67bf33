// One rank's process. Its life:
//   starting      takes the arena's lock, attaches what is there, registers: the fleet is not routable from here
//   catching_up   loads what the fleet holds; what it cannot load it says, and tries again while no reload is at work
//   ready         takes jobs, a few in flight, so that what one waits for overlaps the work of another
//   draining      takes no more jobs, ends those it has, leaves the fleet
//   stopped

import { randomBytes } from "node:crypto";
import { mkdirSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { type Job, Worker } from "bullmq";
import type { Redis } from "ioredis";
import type { Logger } from "pino";
import { loadNative } from "../native/native.js";
import { type FleetMessage, parseFleetMessage } from "../orchestrator/contract/fleet-message.js";
import { CHANNELS, KEY_PREFIX, type RankJob, rankKey, rankQueue } from "../orchestrator/contract/jobs.js";
import type { WarningReport } from "../orchestrator/contract/reload.js";
import { openEventStore } from "../orchestrator/fleet/event-store.js";
import { enteredFields, type FleetStore, openFleetStore } from "../orchestrator/fleet/fleet-store.js";
import { openPlanStore } from "../orchestrator/fleet/plan-store.js";
import { leave } from "../orchestrator/fleet/rank-transitions.js";
import { warn } from "../orchestrator/fleet/reload-transitions.js";
import { openPushSessions } from "../orchestrator/fleet/session-store.js";
import { faultPoint } from "../orchestrator/host/fault-point.js";
import { spreadFileMode, usedFileMode } from "../orchestrator/host/file-mode.js";
import { connectRedis, redisNow } from "../orchestrator/host/redis.js";
import { VERSION } from "../orchestrator/host/version.js";
import { openConsumer } from "../orchestrator/queue/open-lasting.js";
import { backoffStrategy, rethrowForQueue } from "../orchestrator/queue/retry.js";
import { isOfThisBoot, noteBoot } from "./arena-boot.js";
import { openLinkServer } from "./engines/link-server.js";
import { LOCK_NAME, openRankEngines, type RankEngines, type RankEnginesOptions } from "./engines/rank-engines.js";
import { openSources } from "./host-sources.js";
import type { Owner } from "./ledger.js";
import { openNativeWork } from "./native-work.js";
import { exitWithDevice, openRankDevice, type RequestedDevice } from "./open-device.js";
import { pinRepeatedSources } from "./pin-sources.js";
import type { ProcessIdentity } from "./process-identity.js";
import type { RankPushes } from "./push/rank-pushes.js";
import { type Rank, reportKeeper } from "./rank.js";
import { HOST_FILES, openRankArena } from "./rank-arena.js";
import { type RegisteredFile, rankDirectory } from "./registered-file.js";
import { runJob } from "./run-job.js";
import { serve } from "./serve.js";
import { serveExports } from "./serve-exports.js";
import { openStagingOwner } from "./staging.js";
import { identifyLock, showLife, takeLock } from "./take-lock.js";

/** Whom a worker replaces though it is alive: who holds its arena; or also who holds its rank with another arena. */
type TakeOver = "arena" | "rank";

export interface WorkerOptions {
  fleet: string;
  replica: number;
  replicas: number;
  rank: number;
  tensorParallelSize: number;
  expertParallel: boolean;
  device: RequestedDevice;
  runDir: string;
  takeOver: TakeOver | null;
  registered: RegisteredFile;
  redisUrl: string;
  log: Logger;
  /** The process must end: another incarnation has taken over, or a native thread is stuck. */
  onFatal: (reason: string) => void;
}

export interface RunningWorker {
  /** Drains and leaves. */
  stop(): Promise<void>;
}

/** A GPU's bus is idle as soon as no job has anything to copy, and the next takes a few milliseconds to come. */
const JOBS_IN_FLIGHT = { cpu: 2, gpu: 3 };
/**
 * Of a job whose end Redis would not take, until it is taken up again, by this same process: nobody else takes from its
 * queue. Doing a job twice is harmless.
 */
const JOB_LOCK_MS = 4_000;
const STALLED_EVERY_MS = 2_000;

export async function startWorker(options: WorkerOptions): Promise<RunningWorker> {
  const { log, fleet, onFatal } = options;
  const connections = [connectRedis(options.redisUrl, "command"), connectRedis(options.redisUrl, "patient")] as const;
  const [redis, patient] = connections;
  const subscriber = connectRedis(options.redisUrl, "patient");
  for (const connection of [...connections, subscriber]) {
    connection.on("error", (error) => log.warn({ err: error }, "redis"));
  }
  const rank = await openRank(options, redis);
  const stopBeating = await serve(rank, options.takeOver === "rank", {
    every: everyMs,
    delay,
    onMessage: (handle) => listen(subscriber, handle),
    onFatal,
  });
  const stopServing = await serveExports(rank, redis, subscriber);
  const jobs = await takeJobs(rank, patient);
  rank.log.info({ threads: rank.core.threads }, "ready");

  return {
    async stop() {
      rank.log.info("draining");
      rank.stopShowingLife();
      await jobs.close();
      stopBeating();
      stopServing();
      rank.engines.close();
      await rank.store
        .transact(fleet, (draft) => leave(draft, rank.key, rank.incarnation))
        .catch((error: unknown) => {
          log.warn({ err: error }, "leaving the fleet failed; its lease will run out");
        });
      for (const connection of [...connections, subscriber]) connection.disconnect();
      options.registered.remove();
      rank.arena.close();
    },
  };
}

async function openRank(options: WorkerOptions, redis: Redis): Promise<Rank> {
  const { fleet, replica, rank, onFatal } = options;
  const core = exitWithDevice(loadNative(), onFatal);
  const key = rankKey(replica, rank);
  const incarnation = `${Date.now().toString(36)}${randomBytes(3).toString("hex")}`;
  const log = options.log.child({ fleet, replica, rank, incarnation });
  const directory = rankDirectory(options);
  mkdirSync(directory, { recursive: true });
  spreadFileMode(directory);
  const lockPath = join(directory, "lock");
  const onEnding = (holder: ProcessIdentity) => log.warn({ holder }, "ending the process that holds this arena");
  await takeLock({ core, path: lockPath, takeOver: options.takeOver !== null, onEnding });
  const stopShowingLife = showLife(lockPath);
  const scope = key.replace("/", "-");
  await faultPoint("worker.starting", scope);
  const poison = process.env.LAYERCAST_POISON === "1";
  const plans = openPlanStore(redis);
  const place = openRankDevice(core, options.device, directory);
  const arena = await openRankArena({
    ...{ core, rank, directory, ...place, poison, files: HOST_FILES },
    bytesMayBeLost: !isOfThisBoot(directory),
    onDistrust: (reason) => log.warn(reason),
  });
  noteBoot(directory);
  const work = openNativeWork(core, (what) => onFatal(`${what} does not stop`));
  const store = openFleetStore(redis);
  store.onWritten((_, entered) => {
    for (const record of entered) log.info(enteredFields(record), record.state);
  });
  const by = { rank: key, incarnation };
  const engines = await openEngines(options, directory, { core, arena, store, plans, key, incarnation, log });
  const staging = openStagingOwner({ core, arena, work, engines, rank, scope });
  const pushes: RankPushes = {
    ...{ core, work, arena, files: HOST_FILES, rank, by },
    sessions: openPushSessions(redis),
    expected: [],
    warn: (owner, warning) => tellWarning(store, fleet, owner, warning),
  };
  const pin = place.holders === null ? () => {} : pinRepeatedSources(core, place.device, log); // pinned for GPUs only
  const pinnedBytes = () => core.describeDevice(place.device).pinnedBytes;
  const report = reportKeeper(openEventStore(redis), log, { replica, rank, incarnation }, pinnedBytes);
  return {
    fleet,
    key,
    replica,
    rank,
    incarnation,
    host: hostname(),
    lock: identifyLock(lockPath),
    device: options.device.name,
    version: VERSION,
    replicas: options.replicas,
    tensorParallelSize: options.tensorParallelSize,
    expertParallel: options.expertParallel,
    core,
    store,
    plans,
    sources: openSources(() => redisNow(redis), pin),
    arena,
    staging,
    engines,
    pushes,
    log,
    swapping: Promise.resolve(),
    catchingUp: null,
    report,
    stopShowingLife,
    showRegistered: options.registered.touch,
  };
}

function openEngines(
  { fleet, rank, tensorParallelSize }: WorkerOptions,
  directory: string,
  parts: Pick<RankEnginesOptions, "core" | "arena" | "store" | "plans" | "key" | "incarnation" | "log">,
): Promise<RankEngines> {
  const { log } = parts;
  return openRankEngines({
    ...parts,
    ...{ fleet, rank, tensorParallelSize, lockPath: join(directory, LOCK_NAME) },
    clock: { now: () => performance.now(), delay, every: everyMs },
    openLinks: (handlers) => openLinkServer({ directory, fileMode: usedFileMode(), log, ...handlers }),
  });
}

function everyMs(ms: number, call: () => void): () => void {
  const timer = setInterval(call, ms);
  return () => clearInterval(timer);
}

async function tellWarning(store: FleetStore, fleet: string, { reload, epoch }: Owner, warning: WarningReport) {
  await store.transact(fleet, (draft) => warn(draft, reload, epoch, warning));
}

async function listen(subscriber: Redis, handle: (message: FleetMessage) => void): Promise<void> {
  subscriber.on("message", (channel: string, text: string) => {
    const message = channel === CHANNELS.fleet ? parseFleetMessage(text) : null;
    if (message !== null) handle(message);
  });
  await subscriber.subscribe(CHANNELS.fleet);
}

async function takeJobs(rank: Rank, connection: Redis): Promise<Worker> {
  const options = {
    connection,
    prefix: KEY_PREFIX,
    concurrency: rank.device === "cpu" ? JOBS_IN_FLIGHT.cpu : JOBS_IN_FLIGHT.gpu,
    lockDuration: JOB_LOCK_MS,
    stalledInterval: STALLED_EVERY_MS,
    maxStalledCount: 100,
    settings: { backoffStrategy },
  };
  const queue = rankQueue(rank.fleet, rank.key, rank.incarnation);
  const take = (job: Job<RankJob>, token?: string) =>
    rethrowForQueue(job, (isLast) => runJob(rank, job.data, job.attemptsMade + 1, isLast), token);
  const warn = (error: Error) => rank.log.warn({ err: error }, "queue");
  return openConsumer(() => new Worker<RankJob>(queue, take, options).on("error", warn));
}
