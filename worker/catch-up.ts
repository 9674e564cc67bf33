// A rank that joins loads what the fleet holds before it takes a job (P8): what is committed or, once a reload is decided,
// that one and never the old. What cannot be loaded (its source is gone, say) is told to the fleet, which stays unroutable;
// the rank takes jobs all the same, for the next commit heals it, and tries again while no reload is at work.

import { type ErrorReport, reportError } from "../orchestrator/contract/errors.js";
import { reportTrouble } from "../orchestrator/fleet/rank-transitions.js";
import { heldBy } from "../orchestrator/fleet/reload-transitions.js";
import { activeReload, type FleetState, type Held, isLive } from "../orchestrator/fleet/state.js";
import { NotYet } from "../orchestrator/queue/retry.js";
import { prepareReload } from "./load-reload.js";
import { type Loading, loadingOf } from "./loading.js";
import { makeLive } from "./make-live.js";
import { isExportOf } from "./push/kept-export.js";
import { type Rank, readFleet, tellArena } from "./rank.js";

/** For a rank that takes jobs: not while a reload's jobs will bring it there. */
export async function catchUpIfBehind(rank: Rank, state: FleetState): Promise<void> {
  const active = activeReload(state);
  const isDrained = state.drained[rank.replica] !== undefined;
  if (active === null || active.state === "committing" || isDrained) await catchUp(rank);
}

/** One try; the one that is under way, if there is one. */
export function catchUp(rank: Rank): Promise<void> {
  rank.catchingUp ??= tryOnce(rank).finally(() => {
    rank.catchingUp = null;
  });
  return rank.catchingUp;
}

async function tryOnce(rank: Rank): Promise<void> {
  const { state } = await readFleet(rank);
  const target = targetOf(rank, state);
  if (target === null) return;
  if (!isLive({ live: rank.arena.liveState() }, target)) return loadOrSayWhyNot(rank, target);
  // It has swapped, and Redis would not take its word.
  const known = state.ranks[rank.key];
  if (known?.incarnation === rank.incarnation && !isLive(known, target)) await tellArena(rank, null);
}

async function loadOrSayWhyNot(rank: Rank, target: Held): Promise<void> {
  try {
    await load(rank, target);
  } catch (error) {
    if (error instanceof NotYet) return; // the next heartbeat tries again
    const trouble = explain(target, reportError(error));
    rank.log.warn({ err: error, reload: target.reload, code: trouble.code }, "catching up failed");
    await rank.store.transact(rank.fleet, (draft) => reportTrouble(draft, rank.key, rank.incarnation, trouble));
  }
}

/** What this rank must show; null where nothing is, or where something else will bring it there. */
function targetOf({ arena, replica }: Rank, state: FleetState): Held | null {
  const active = activeReload(state);
  if (active?.state === "committing" && state.drained[replica] === undefined) return heldBy(active);
  if (active?.inPlace) return null;
  // Back from what was decided there is no way (P10): a torn fleet waits for the next commit.
  if (state.torn && arena.liveState().state === "live") return null;
  return state.committed;
}

async function load(rank: Rank, target: Held): Promise<void> {
  const { reload, epoch, weightVersion, content } = target;
  rank.log.info({ reload, epoch, weight_version: weightVersion }, "catching up");
  const plan = await rank.plans.load(content);
  const loading = loadingOf(rank, { inPlace: false }, { reload, epoch, content }, plan);
  const { base } = plan;
  if (base !== null && (await needsBase(rank, loading))) await loadBase(rank, base);
  await prepareReload(loading);
  if (mayBeLive((await readFleet(rank)).state, target)) await makeLive(rank, loading, target);
}

/** A partial push changes parts of other weights; a rank that has lost everything needs those first. */
async function needsBase({ arena }: Rank, loading: Loading): Promise<boolean> {
  return arena.liveState().state === "empty" && !(await isExportOf(loading));
}

async function loadBase(rank: Rank, base: Held): Promise<void> {
  const { reload, epoch, content } = base;
  const loading = loadingOf(rank, { inPlace: false }, { reload, epoch, content }, await rank.plans.load(content));
  await prepareReload(loading);
  await makeLive(rank, loading, base);
}

/** Not while engines are still being paused, nor once the fleet has gone elsewhere: the next heartbeat looks again. */
function mayBeLive(state: FleetState, target: Held): boolean {
  const active = activeReload(state);
  if (active?.state === "committing" && active.epoch === target.epoch) return active.times.signalled !== null;
  return state.committed?.epoch === target.epoch;
}

const GONE = ["source_not_found", "source_changed", "source_gone"];

function explain(target: Held, report: ErrorReport): ErrorReport {
  if (!GONE.includes(report.code)) return report;
  return {
    ...report,
    code: "source_gone",
    message: `the source of weight version ${target.weightVersion} is gone (${report.message}); the next commit heals this`,
  };
}
