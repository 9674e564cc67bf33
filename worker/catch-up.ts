// A rank that joins loads what the fleet holds before it takes a job (P8): what is committed or, once a reload is decided,
// that one and never the old. What cannot be loaded (its source is gone, say) is told to the fleet, which stays unroutable;
// the rank takes jobs all the same, for the next commit heals it, and tries again while no reload is at work.

import { type ErrorReport, reportError } from "../orchestrator/contract/errors.js";
import { loadPlan } from "../orchestrator/reloads/plan-store.js";
import { reportTrouble } from "../orchestrator/reloads/protocol/rank-transitions.js";
import { heldBy } from "../orchestrator/reloads/protocol/reload-transitions.js";
import { activeReload, type FleetState, type Held, isLive } from "../orchestrator/reloads/protocol/state.js";
import { prepareReload } from "./load-reload.js";
import { type Rank, readFleet, tellArena } from "./rank.js";
import { loadingOf } from "./run-job.js";

/** One try; true when nothing is left to catch up with. */
export async function catchUp(rank: Rank): Promise<boolean> {
  const target = targetOf((await readFleet(rank)).state);
  if (target === null || isLive({ live: rank.arena.liveState() }, target)) return true;
  try {
    await load(rank, target);
    return true;
  } catch (error) {
    const trouble = explain(target, reportError(error));
    rank.log.warn({ err: error, reload: target.reload, code: trouble.code }, "catching up failed");
    await rank.store.transact(rank.fleet, (draft) => reportTrouble(draft, rank.key, rank.incarnation, trouble));
    return false;
  }
}

/** What this rank must show; null while a reload is at work whose jobs will bring it there. */
function targetOf(state: FleetState): Held | null {
  const active = activeReload(state);
  if (active?.state === "committing") return heldBy(active);
  return active?.inPlace ? null : state.committed;
}

async function load(rank: Rank, target: Held): Promise<void> {
  const owner = { reload: target.reload, epoch: target.epoch, content: target.content };
  rank.log.info({ reload: target.reload, epoch: target.epoch, weight_version: target.weightVersion }, "catching up");
  const plan = await loadPlan(rank.redis, target.content);
  await prepareReload(loadingOf(rank, { inPlace: false }, owner, plan));
  const swapMs = await rank.staging.swap(owner, target);
  await tellArena(rank, swapMs);
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
