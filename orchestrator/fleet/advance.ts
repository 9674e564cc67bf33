// What follows by itself: after every transition the store lets the fleet take each step that has become possible, in the
// same write. And what must be done outside of the document, for whoever sees it: any orchestrator, any number of times.

import type { RankKey } from "../contract/jobs.js";
import { startingEngines } from "./engine-leases.js";
import {
  admitNext,
  decide,
  enforceDeadlines,
  letEnginesGo,
  publish,
  ranksNotLive,
  unpreparedRanks,
} from "./reload-transitions.js";
import { rejoin } from "./replica-transitions.js";
import {
  activeReload,
  type Context,
  type EngineStop,
  expectedRanks,
  type FleetState,
  missingRanks,
  type ReloadRecord,
  shows,
} from "./state.js";
import { mendTorn, whyTorn } from "./torn-fleet.js";

export function advance(state: FleetState, context: Context): void {
  state.redisRunId = context.redisRunId; // ranks of its life before are missing until they register again (P13)
  enforceDeadlines(state, context.now);
  rejoin(state, context);
  letEnginesGo(state);
  publish(state, context);
  mendTorn(state, context);
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
  if (active?.inPlace && active.state !== "planning") return `reload ${active.id} is writing in place`;
  if (state.torn) return whyTorn(state);
  if (state.engineStop !== null) return enginesStandStill(state.engineStop);
  if (committed === null) return "no weights are committed";
  const missing = missingRanks(state, context);
  if (missing.length > 0) return `waiting for ranks ${missing.join(", ")} (replica/rank)`;
  const behind = expectedRanks(state).filter((key) => !shows(state, key, committed));
  if (behind.length === 0) return null;
  for (const key of behind) {
    const trouble = state.ranks[key]?.trouble ?? null;
    if (trouble !== null) return `${trouble.code}: rank ${key}: ${trouble.message}`;
  }
  return `ranks ${behind.join(", ")} do not hold weight version ${committed.weightVersion} yet`;
}

function enginesStandStill({ reload, failure }: EngineStop): string {
  if (failure !== null) return `${failure.code}: ${failure.message}`;
  return `the engines that stood still for reload ${reload} are being resumed`;
}

/** The decision, if the state calls for it and every rank is there to be decided about. */
export function decideIfReady(state: FleetState, context: Context, onDisk: boolean): void {
  const step = nextStep(state);
  if (step?.kind !== "decide" || missingRanks(state, context).length > 0) return;
  decide(state, step.reload, step.epoch, context, onDisk);
}

export type NextStep =
  | { kind: "start"; reload: string; epoch: number }
  | { kind: "enqueue"; reload: string; epoch: number; ranks: RankKey[] }
  | { kind: "decide"; reload: string; epoch: number }
  | { kind: "confirm"; reload: string; epoch: number }
  | { kind: "swap"; reload: string; epoch: number; ranks: RankKey[] };

/** The work that the active reload waits for an orchestrator to do. */
export function nextStep(state: FleetState): NextStep | null {
  const record = activeReload(state);
  if (record === null || record.epoch === null) return null;
  const { id: reload, epoch } = record;
  if (record.state === "planning") return { kind: "start", reload, epoch };
  if (record.state === "committing") return nextCommitStep(state, record, epoch);
  if (record.inPlace && record.times.signalled === null) return null; // its engines are being paused
  if (record.push && !record.push.finished) return null; // it is being sent; see push/tend-session.ts
  const ranks = expectedRanks(state).filter((key) => {
    const rank = state.ranks[key];
    return rank !== undefined && record.enqueued[key] !== rank.incarnation;
  });
  if (ranks.length > 0) return { kind: "enqueue", reload, epoch, ranks };
  const isReady = unpreparedRanks(state, record).length === 0 && startingEngines(state).length === 0;
  return isReady ? { kind: "decide", reload, epoch } : null;
}

function nextCommitStep(state: FleetState, record: ReloadRecord, epoch: number): NextStep | null {
  const { id: reload } = record;
  if (record.times.signalled === null) {
    return state.engineStop?.reload === reload ? null : { kind: "confirm", reload, epoch };
  }
  // An incarnation that came after the decision loads and swaps by itself before it takes jobs (P8).
  const ranks = ranksNotLive(state, record).filter((key) => {
    const rank = state.ranks[key];
    return rank !== undefined && record.tokens[key]?.incarnation === rank.incarnation;
  });
  return ranks.length > 0 ? { kind: "swap", reload, epoch, ranks } : null;
}
