// Jobs for the ranks of an active reload: the flow of layer and finalize jobs, and the swaps after the decision. A crash
// between the sending and its being noted sends the same job ids again, which the queue ignores.

import { LayercastError } from "../contract/errors.js";
import type { RankKey } from "../contract/jobs.js";
import { nextStep } from "../fleet/advance.js";
import { confirmDecision, decide, markEnqueued } from "../fleet/reload-transitions.js";
import { activeReload, type FleetState, type ReloadRecord } from "../fleet/state.js";
import { faultPoint } from "../host/fault-point.js";
import type { RankWork } from "../queue/queues.js";
import type { DriveDeps } from "./deps.js";

/** Sends layer and finalize jobs to the ranks whose current incarnation has none yet. */
export async function enqueueRanks(deps: DriveDeps, state: FleetState, reload: string): Promise<void> {
  const step = nextStep(state);
  const record = activeReload(state);
  if (step?.kind !== "enqueue" || record === null || step.reload !== reload) return;
  if (record.inPlace && !(await isSignalKept(deps, state.fleet, reload))) return;
  const { layerJobs, retry } = await deps.plans.load(reload);
  const ranks = step.ranks.flatMap((key) => workOf(state, record, key, layerJobs));
  const { fleet } = state;
  const { epoch } = step;
  const enqueueing = record.enqueueings;
  await deps.queues.addFlow({ fleet, reload, epoch, retry, ranks, enqueueing }, enqueueing === 0);
  await faultPoint("orchestrator.enqueued");
  await ignoringStale(deps.store.transact(fleet, (draft) => markEnqueued(draft, reload, epoch, incarnationsOf(ranks))));
}

/** Writing in place is as good as decided: it must be on disk before the first byte, and Redis not have come back without it. */
export async function isSignalKept(deps: DriveDeps, fleet: string, reload: string): Promise<boolean> {
  if (await deps.disk.atOnce()) return true;
  await deps.disk.wait();
  const known = await deps.store.read(fleet);
  const record = known === null ? null : activeReload(known.state);
  return record?.id === reload && record.times.signalled !== null;
}

function workOf(state: FleetState, record: ReloadRecord, key: RankKey, layerJobs: number[][]): RankWork[] {
  const rank = state.ranks[key];
  if (rank === undefined) return [];
  // Undo that holds the rollback's target is only adopted; and one job before a barrier would be a hop for nothing:
  // finalize loads what is missing.
  const adopts = record.kind === "rollback" && rank.undo?.content === record.content;
  return [{ rank: key, incarnation: rank.incarnation, layerJobs: adopts || layerJobs.length === 1 ? [] : layerJobs }];
}

/** finalizing -> committing, then the swaps. Throws `not_prepared` while a rank's token is missing. */
export async function decideReload(deps: DriveDeps, fleet: string, reload: string, epoch: number): Promise<void> {
  await faultPoint("orchestrator.decide");
  const onDisk = await deps.disk.atOnce();
  const { state } = await deps.store.transact(fleet, (draft, context) => decide(draft, reload, epoch, context, onDisk));
  await faultPoint("orchestrator.decided");
  await sendSwaps(deps, state, reload);
}

/** The decision is on disk: engines may be paused, ranks may swap. */
export async function confirmReload(deps: DriveDeps, fleet: string, reload: string, epoch: number): Promise<void> {
  await deps.disk.wait();
  const { state } = await deps.store.transact(fleet, (draft, { now }) => confirmDecision(draft, reload, epoch, now));
  await sendSwaps(deps, state, reload);
}

/**
 * Sends swap jobs to the prepared ranks that are not live yet. What this process has sent it does not send again, unless
 * `again`: the sweep's way to make up for one that died in between. The queue ignores ids that it knows.
 */
export async function sendSwaps(deps: DriveDeps, state: FleetState, reload: string, again = false): Promise<void> {
  const step = nextStep(state);
  if (step?.kind !== "swap" || step.reload !== reload) return;
  const { fleet } = state;
  const { epoch } = step;
  const known = deps.swapsSent.get(fleet);
  const sent = known?.epoch === epoch && !again ? known.incarnations : new Set<string>();
  deps.swapsSent.set(fleet, { epoch, incarnations: sent });
  const ranks = step.ranks.flatMap((key) => {
    const incarnation = state.ranks[key]?.incarnation;
    return incarnation === undefined || sent.has(incarnation) ? [] : [{ rank: key, incarnation }];
  });
  if (ranks.length === 0) return;
  await deps.queues.addSwaps({ fleet, reload, epoch }, ranks);
  for (const { incarnation } of ranks) sent.add(incarnation);
  await faultPoint("orchestrator.swaps_sent");
}

/** The ranks may be faster than the mark: then the reload has ended, and nothing is left to note. */
async function ignoringStale(marking: Promise<unknown>): Promise<void> {
  try {
    await marking;
  } catch (error) {
    if (!(error instanceof LayercastError && error.code === "stale_job")) throw error;
  }
}

function incarnationsOf(ranks: { rank: RankKey; incarnation: string }[]): Record<RankKey, string> {
  return Object.fromEntries(ranks.map(({ rank, incarnation }) => [rank, incarnation]));
}
