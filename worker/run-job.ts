// One job of this rank, by kind. Delivered at least once, perhaps late: a job of an ended reload does nothing, one that
// meets an unexpected state fails and is tried again, and none completes without its step being done (P6).

import { hostname } from "node:os";
import { join } from "node:path";
import { LayercastError, reportError } from "../orchestrator/contract/errors.js";
import type { ExportResult, RankJob } from "../orchestrator/contract/jobs.js";
import { faultPoint } from "../orchestrator/fault-point.js";
import { exportLayout } from "../orchestrator/planner/arena-layout.js";
import { type LoadedPlan, loadPlan } from "../orchestrator/reloads/plan-store.js";
import { fail, handInToken, heldBy } from "../orchestrator/reloads/protocol/reload-transitions.js";
import { activeReload, type ReloadRecord } from "../orchestrator/reloads/protocol/state.js";
import type { Owner } from "./ledger.js";
import { type Loading, loadLayers, openFor, prepareReload } from "./load-reload.js";
import { type Rank, readFleet, tellArena } from "./rank.js";

type ReloadJob = Exclude<RankJob, { kind: "export" }>;

/** `isLast` when the queue will not try again: then a failure fails the reload. */
export async function runJob(rank: Rank, job: RankJob, attempt: number, isLast: boolean): Promise<ExportResult | null> {
  if (job.kind === "export") return exportLive(rank, job.file);
  const layers = job.kind === "layer" ? { layers: job.layers } : {};
  const log = rank.log.child({ reload: job.reload, epoch: job.epoch, job: job.kind, ...layers });
  try {
    const record = await activeFor(rank, job);
    if (record === null) return null;
    const owner = { reload: job.reload, epoch: job.epoch, content: record.content };
    const plan = await loadPlan(rank.redis, job.reload);
    if (job.kind === "swap") await runSwap(rank, record, owner, plan);
    else await runLoad(rank, job, record, owner, plan, attempt, isLast);
    log.debug("done");
  } catch (error) {
    if (error instanceof LayercastError && (error.code === "stale_job" || error.code === "cancelled")) {
      log.info(`not done: ${error.message}`);
      if (error.code === "stale_job" || (await activeFor(rank, job)) === null) return null;
    }
    log.warn({ err: error, attempt }, "failed");
    throw error;
  }
  return null;
}

/** The job's reload if it is still the active one; null for the orphans of ended ones. */
async function activeFor(rank: Rank, job: ReloadJob): Promise<ReloadRecord | null> {
  const { state } = await readFleet(rank);
  const active = activeReload(state);
  if (active === null || active.id !== job.reload || active.epoch !== job.epoch) return null;
  if (state.ranks[rank.key]?.incarnation === rank.incarnation) return active;
  throw new LayercastError("stale_job", `rank ${rank.key} has a newer incarnation than ${rank.incarnation}`);
}

async function runLoad(
  rank: Rank,
  job: ReloadJob,
  record: ReloadRecord,
  owner: Owner,
  plan: LoadedPlan,
  attempt: number,
  isLast: boolean,
): Promise<void> {
  if (record.state === "committing") return; // late: it is decided, so this rank was prepared
  const loading = loadingOf(rank, record, owner, plan);
  loading.report.attempted();
  try {
    if (job.kind === "layer") {
      if (rank.staging.prepared(owner) !== null) return; // delivered again after the rank barrier
      await openFor(loading);
      await loadLayers(loading, job.layers);
    } else {
      await runFinalize(rank, loading);
    }
  } catch (error) {
    await tellFailure(rank, job, loading, error, attempt, isLast);
    throw error;
  }
}

export function loadingOf(rank: Rank, record: Pick<ReloadRecord, "inPlace">, owner: Owner, plan: LoadedPlan): Loading {
  const mode = record.inPlace ? "in_place" : "staged";
  return {
    owner,
    plan,
    mode,
    staging: rank.staging,
    report: rank.report(owner, plan),
    scope: rank.key.replace("/", "-"),
  };
}

/** The rank barrier has fallen: prepare, and say so with the token (P3). */
async function runFinalize(rank: Rank, loading: Loading): Promise<void> {
  const { owner, scope } = loading;
  await rank.staging.adopt(owner);
  const { digest, generation, finalizeMs } = await prepareReload(loading);
  await faultPoint("worker.prepared", scope);
  await rank.store.transact(rank.fleet, (draft, { now }) =>
    handInToken(draft, owner.reload, rank.key, {
      incarnation: rank.incarnation,
      epoch: owner.epoch,
      generation,
      digest,
      finalizeMs,
      at: now,
    }),
  );
  await faultPoint("worker.token", scope);
}

/** A failure that will be tried again is an event; one that will not fails the reload, on all ranks at once. */
async function tellFailure(
  rank: Rank,
  job: ReloadJob,
  loading: Loading,
  error: unknown,
  attempt: number,
  isLast: boolean,
): Promise<void> {
  const report = reportError(error);
  if (report.code === "stale_job" || report.code === "cancelled") return;
  if (report.retryable && !isLast) {
    loading.report.retry(job.kind === "layer" ? `layers ${job.layers.join(", ")}` : job.kind, attempt, report);
    return;
  }
  const details = { ...report.details, replica: rank.replica, rank: rank.rank, host: rank.host, attempts: attempt };
  await rank.store.transact(rank.fleet, (draft, { now }) =>
    fail(draft, job.reload, job.epoch, { ...report, retryable: false, details }, now),
  );
}

/**
 * After the decision: the prepared bytes become live (P4). The word that it is decided comes by message, without a queue's
 * hop, and as a job, which is never lost: whichever is first does it, the other finds it done and only says so again.
 */
async function runSwap(rank: Rank, record: ReloadRecord, owner: Owner, plan: LoadedPlan): Promise<void> {
  if (record.state !== "committing") {
    throw new LayercastError("not_prepared", `reload ${record.id} is ${record.state}, not decided`, {
      state: record.state,
    });
  }
  await rank.swapping;
  const live = rank.arena.liveState();
  if (live.held?.epoch === owner.epoch && live.generation % 2 === 0) {
    await tellArena(rank, null);
    return;
  }
  const swap = swapNow(rank, record, owner, plan);
  rank.swapping = swap.catch(() => {});
  await swap;
}

async function swapNow(rank: Rank, record: ReloadRecord, owner: Owner, plan: LoadedPlan): Promise<void> {
  const loading = loadingOf(rank, record, owner, plan);
  await faultPoint("worker.swap", loading.scope);
  if (rank.staging.prepared(owner) === null) await prepareReload(loading);
  const swapMs = await rank.staging.swap(owner, heldBy(record));
  await faultPoint("worker.swapped", loading.scope);
  loading.report.phase("swapped", { swap_ms: swapMs }); // first: what follows from the next line may end the event stream
  await tellArena(rank, swapMs);
}

/** The fleet says that what this rank has prepared is decided. */
export async function swapDecided(rank: Rank, owner: Owner): Promise<void> {
  const { state } = await readFleet(rank);
  const record = activeReload(state);
  if (record?.id !== owner.reload || record.epoch !== owner.epoch || rank.staging.prepared(owner) === null) return;
  await runSwap(rank, record, owner, await loadPlan(rank.redis, owner.reload));
}

/** The live kernel tensors as a file of their own, while nothing can be swapped. */
async function exportLive(rank: Rank, file: string): Promise<ExportResult> {
  return rank.staging.whileStanding(async () => {
    const standing = rank.arena.standing();
    const live = rank.arena.liveState();
    if (standing === null || live.held === null) {
      throw new LayercastError("not_prepared", `rank ${rank.key} holds no weights: its arena is ${live.state}`, {
        arena_state: live.state,
      });
    }
    const { weightVersion } = live.held;
    const { headerBytes, spans } = exportLayout(standing.layout, weightVersion);
    const path = join(rank.arena.exportDirectory, file);
    const { core } = rank;
    const { bytes } = await core.exportLive(standing.arena, path, headerBytes, spans, core.createCancel());
    return { path, bytes, weightVersion, arenaGeneration: live.generation, host: hostname() };
  });
}
