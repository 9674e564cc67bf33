// After the signal: prepared bytes become live, exactly once (P4). The word comes by message, without a queue's hop, and as a
// job, which is never lost; a rank that joins comes by itself. They wait for each other, and who finds it done says so again.

import { reportError } from "../orchestrator/contract/errors.js";
import { reportTrouble } from "../orchestrator/fleet/rank-transitions.js";
import { type Held, isLive } from "../orchestrator/fleet/state.js";
import { faultPoint } from "../orchestrator/host/fault-point.js";
import { noteLive, prepareReload } from "./load-reload.js";
import type { Loading } from "./loading.js";
import { keepExport } from "./push/kept-export.js";
import { type Rank, tellArena } from "./rank.js";

/** The caller has seen that nothing can take these weights back: they are committed, or the ranks were told to swap. */
export function makeLive(rank: Rank, loading: Loading, held: Held): Promise<void> {
  const swap = rank.swapping.then(() => swapOnce(rank, loading, held));
  rank.swapping = swap.catch((error: unknown) => tellEngineRunning(rank, error));
  return swap;
}

/** The swap is tried again, and meanwhile the reload says what it waits for. */
async function tellEngineRunning({ store, fleet, key, incarnation, log }: Rank, error: unknown): Promise<void> {
  const trouble = reportError(error);
  if (trouble.code !== "engine_running") return;
  await store
    .transact(fleet, (draft) => reportTrouble(draft, key, incarnation, trouble))
    .catch((failure: unknown) => log.warn({ err: failure }, "a swap that waits for an engine could not be reported"));
}

async function swapOnce(rank: Rank, loading: Loading, held: Held): Promise<void> {
  if (isLive({ live: rank.arena.liveState() }, held)) {
    await tellArena(rank, null);
    return;
  }
  const { owner, scope, report } = loading;
  await faultPoint("worker.swap", scope);
  if (rank.staging.prepared(owner) === null) await prepareReload(loading);
  const swapMs = await rank.staging.swap(owner, held);
  const endedAt = performance.now();
  await faultPoint("worker.swapped", scope);
  report.phase("swapped", { swap_ms: swapMs }); // first: what follows from the next line may end the event stream
  await tellArena(rank, { ms: swapMs, endedAt });
  noteLive(loading);
  await keepExport(loading, held).catch((error: unknown) => rank.log.warn({ err: error }, "no export was kept"));
}
