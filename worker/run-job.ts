// One job of this rank, by kind. Delivered at least once, perhaps late: a job of an ended reload does nothing, one that
// meets an unexpected state fails and is tried again, and none completes without its step being done (P6).

import { hostname } from "node:os";
import { join } from "node:path";
import { type ErrorCode, LayercastError, reportError } from "../orchestrator/contract/errors.js";
import type { ExportResult, RankJob } from "../orchestrator/contract/jobs.js";
import type { ReloadPlan } from "../orchestrator/fleet/plan-store.js";
import { reportArena } from "../orchestrator/fleet/rank-transitions.js";
import { fail, handInToken, heldBy } from "../orchestrator/fleet/reload-transitions.js";
import { activeReload, type ReloadRecord } from "../orchestrator/fleet/state.js";
import { faultPoint } from "../orchestrator/host/fault-point.js";
import { exportLayout } from "../orchestrator/program/arena-layout.js";
import { NotYet } from "../orchestrator/queue/retry.js";
import type { Owner } from "./ledger.js";
import { prepareReload, takeBucket, takeLayers } from "./load-reload.js";
import { type Loading, loadingOf } from "./loading.js";
import { makeLive } from "./make-live.js";
import { type Rank, readFleet, undoOf } from "./rank.js";

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
    const plan = await rank.plans.load(job.reload);
    if (job.kind === "swap") await runSwap(rank, record, owner, plan);
    else await runLoad(rank, job, record, owner, plan, attempt, isLast);
    log.debug("done");
  } catch (error) {
    if (error instanceof LayercastError && (error.code === "stale_job" || error.code === "cancelled")) {
      log.info(`not done: ${error.message}`);
      if (error.code === "stale_job" || (await activeFor(rank, job)) === null) return null;
    }
    if (!(error instanceof NotYet)) log.warn({ err: error, attempt }, "failed");
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
  plan: ReloadPlan,
  attempt: number,
  isLast: boolean,
): Promise<void> {
  if (record.state === "committing") return; // late: it is decided, so this rank was prepared
  const loading = loadingOf(rank, record, owner, plan);
  loading.report.attempted();
  try {
    if (job.kind === "layer") {
      if (rank.staging.prepared(owner) !== null) return; // delivered again after the rank barrier
      await takeLayers(loading, job.layers);
    } else if (job.kind === "bucket") {
      if (rank.staging.prepared(owner) === null) await takeBucket(loading, job.sequence);
    } else {
      await runFinalize(rank, loading);
    }
  } catch (caught) {
    const error = record.kind === "rollback" ? explainRollback(rank, record, caught) : caught;
    await tellFailure(rank, job, loading, error, attempt, isLast);
    throw error;
  }
}

const GONE: ErrorCode[] = ["source_not_found", "source_changed", "source_gone"];

/** A rank that has lost its undo stages from the source; without that either there is nothing to go back to (P11). */
function explainRollback({ key }: Rank, { weightVersion }: ReloadRecord, error: unknown): unknown {
  if (!(error instanceof LayercastError) || !GONE.includes(error.code)) return error;
  return new LayercastError(
    "nothing_to_roll_back",
    `rank ${key} no longer holds weight version ${weightVersion}, and its source is gone: ${error.message}`,
    { rank: key, weight_version: weightVersion, cause: error.code },
    error,
  );
}

/** The rank barrier has fallen: prepare, and say so with the token (P3). */
async function runFinalize(rank: Rank, loading: Loading): Promise<void> {
  const { owner, scope } = loading;
  await rank.staging.adopt(owner);
  const { digest, generation, finalizeMs } = await prepareReload(loading);
  await faultPoint("worker.prepared", scope);
  const arena = { live: rank.arena.liveState(), undo: undoOf(rank), swap: null };
  const token = { incarnation: rank.incarnation, epoch: owner.epoch, generation, digest, finalizeMs };
  await rank.store.transact(rank.fleet, (draft, { now }) => {
    reportArena(draft, rank.key, rank.incarnation, arena); // the token's generation is compared with it
    handInToken(draft, owner.reload, rank.key, { ...token, at: now });
  });
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
  if (error instanceof NotYet) return;
  const report = reportError(error);
  if (report.code === "stale_job" || report.code === "cancelled") return;
  if (report.retryable && !isLast) {
    loading.report.retry(describeJob(job), attempt, report);
    return;
  }
  const details = { ...report.details, replica: rank.replica, rank: rank.rank, host: rank.host, attempts: attempt };
  await rank.store.transact(rank.fleet, (draft, { now }) =>
    fail(draft, job.reload, job.epoch, { ...report, retryable: false, details }, now),
  );
}

function describeJob(job: ReloadJob): string {
  if (job.kind === "layer") return `layers ${job.layers.join(", ")}`;
  return job.kind === "bucket" ? `bucket ${job.sequence}` : job.kind;
}

/** The word to swap, as a job: it is never lost. */
async function runSwap(rank: Rank, record: ReloadRecord, owner: Owner, plan: ReloadPlan): Promise<void> {
  if (record.state !== "committing" || record.times.signalled === null) {
    throw new LayercastError("not_prepared", `reload ${record.id} is ${record.state}, and ranks may not swap yet`, {
      state: record.state,
    });
  }
  await makeLive(rank, loadingOf(rank, record, owner, plan), heldBy(record));
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
    const { headerBytes, spans } = exportLayout(standing.layout, { weight_version: weightVersion });
    const path = join(rank.arena.exportDirectory, file);
    const { core } = rank;
    const { bytes } = await core.exportLive(standing.arena, path, headerBytes, spans, core.createCancel());
    return { path, bytes, weightVersion, arenaGeneration: live.generation, host: hostname() };
  });
}
