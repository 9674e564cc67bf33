// A rank that joins loads what the fleet holds before it takes a job (P8): what is committed or, once a reload is decided,
// that one and never the old. Again until its arena shows it.

import { setTimeout as delay } from "node:timers/promises";
import { retryDelayMs } from "../orchestrator/contract/jobs.js";
import { loadPlan } from "../orchestrator/reloads/plan-store.js";
import { heldBy } from "../orchestrator/reloads/protocol/reload-transitions.js";
import { activeReload, type FleetState, type Held } from "../orchestrator/reloads/protocol/state.js";
import { prepareReload } from "./load-reload.js";
import { type Rank, readFleet, tellArena } from "./rank.js";
import { loadingOf } from "./run-job.js";

const RETRY = { attempts: Number.POSITIVE_INFINITY, backoffMs: 100 };

export async function catchUp(rank: Rank, signal: AbortSignal): Promise<void> {
  for (let attempt = 1; !signal.aborted; attempt++) {
    try {
      const target = targetOf((await readFleet(rank)).state);
      if (target === null || shows(rank, target)) return;
      await load(rank, target);
    } catch (error) {
      rank.log.warn({ err: error, attempt }, "catching up failed; trying again");
      await delay(retryDelayMs(RETRY, Math.min(attempt, 10), Math.random()), null, { signal }).catch(() => {});
    }
  }
}

/** What this rank must show, or null when it may wait for the jobs of a reload that writes in place anyway. */
function targetOf(state: FleetState): Held | null {
  const active = activeReload(state);
  if (active?.state === "committing") return heldBy(active);
  return active?.inPlace ? null : state.committed;
}

function shows({ arena }: Rank, target: Held): boolean {
  const { held, generation } = arena.liveState();
  return held !== null && generation % 2 === 0 && held.epoch === target.epoch && held.content === target.content;
}

async function load(rank: Rank, target: Held): Promise<void> {
  const owner = { reload: target.reload, epoch: target.epoch, content: target.content };
  rank.log.info({ reload: target.reload, epoch: target.epoch, weight_version: target.weightVersion }, "catching up");
  const plan = await loadPlan(rank.redis, target.content);
  await prepareReload(loadingOf(rank, { inPlace: false }, owner, plan));
  const swapMs = await rank.staging.swap(owner, target);
  await tellArena(rank, swapMs);
}
