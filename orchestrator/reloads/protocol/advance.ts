// What follows by itself: after every transition the store lets the fleet take each step that has become possible, in the
// same write. And what must be done outside of the document, for whoever sees it: any orchestrator, any number of times.

import type { RankKey } from "../../contract/jobs.js";
import { admitNext, decide, enforceDeadlines, publish, unpreparedRanks } from "./reload-transitions.js";
import { activeReload, type Context, expectedRanks, type FleetState, isLive, missingRanks } from "./state.js";

export function advance(state: FleetState, context: Context): void {
  enforceDeadlines(state, context.now);
  publish(state, context);
  admitNext(state, context);
  const reason = whyNotRoutable(state, context);
  state.routable = reason === null;
  state.notRoutableReason = reason;
}

/** Requests may go to the fleet when every rank holds what was committed last, and nothing is writing to it. */
export function whyNotRoutable(state: FleetState, context: Context): string | null {
  const { committed } = state;
  const active = activeReload(state);
  if (active?.state === "committing") return `reload ${active.id} is committing`;
  if (active?.inPlace && active.times.planned !== null) return `reload ${active.id} is writing in place`;
  if (state.torn) return "fleet_torn: ranks may hold different weights; the next commit heals it";
  if (committed === null) return "no weights are committed";
  const missing = missingRanks(state, context);
  if (missing.length > 0) return `waiting for ranks ${missing.join(", ")} (replica/rank)`;
  const behind = expectedRanks(state).filter((key) => {
    const rank = state.ranks[key];
    return rank === undefined || !isLive(rank, committed);
  });
  if (behind.length === 0) return null;
  for (const key of behind) {
    const trouble = state.ranks[key]?.trouble ?? null;
    if (trouble !== null) return `${trouble.code}: rank ${key}: ${trouble.message}`;
  }
  return `ranks ${behind.join(", ")} do not hold weight version ${committed.weightVersion} yet`;
}

/** The decision, if the state calls for it and every rank is there to be decided about. */
export function decideIfReady(state: FleetState, context: Context): void {
  const step = nextStep(state);
  if (step?.kind !== "decide" || missingRanks(state, context).length > 0) return;
  decide(state, step.reload, step.epoch, context);
}

export type NextStep =
  | { kind: "start"; reload: string; epoch: number }
  | { kind: "enqueue"; reload: string; epoch: number; ranks: RankKey[] }
  | { kind: "decide"; reload: string; epoch: number }
  | { kind: "swap"; reload: string; epoch: number; ranks: RankKey[] };

/** The work that the active reload waits for an orchestrator to do. */
export function nextStep(state: FleetState): NextStep | null {
  const record = activeReload(state);
  if (record === null || record.epoch === null) return null;
  const { id: reload, epoch } = record;
  if (record.state === "planning") return { kind: "start", reload, epoch };
  const keys = expectedRanks(state);
  if (record.state === "committing") {
    const ranks = keys.filter((key) => {
      const rank = state.ranks[key];
      if (rank === undefined || isLive(rank, { content: record.content, epoch })) return false;
      // An incarnation that came after the decision loads and swaps by itself before it takes jobs (P8).
      return record.tokens[key]?.incarnation === rank.incarnation;
    });
    return ranks.length > 0 ? { kind: "swap", reload, epoch, ranks } : null;
  }
  const ranks = keys.filter((key) => {
    const rank = state.ranks[key];
    return rank !== undefined && record.enqueued[key] !== rank.incarnation;
  });
  if (ranks.length > 0) return { kind: "enqueue", reload, epoch, ranks };
  return unpreparedRanks(state, record).length === 0 ? { kind: "decide", reload, epoch } : null;
}
