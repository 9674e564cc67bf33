// A rank as its parts know it: who it is, and what it works with.

import type { Redis } from "ioredis";
import type { Logger } from "pino";
import type { NativeCore } from "../native/native.js";
import { LayercastError } from "../orchestrator/contract/errors.js";
import type { RankKey } from "../orchestrator/contract/jobs.js";
import type { FleetSnapshot, FleetStore } from "../orchestrator/reloads/fleet-store.js";
import type { LoadedPlan } from "../orchestrator/reloads/plan-store.js";
import { reportArena } from "../orchestrator/reloads/protocol/rank-transitions.js";
import type { FleetState, Held } from "../orchestrator/reloads/protocol/state.js";
import type { Owner } from "./ledger.js";
import type { RankArena } from "./rank-arena.js";
import { openReport, type ProgressReport } from "./report.js";
import type { RankStaging } from "./staging.js";

export interface Rank {
  fleet: string;
  key: RankKey;
  replica: number;
  rank: number;
  /** One life of this process. */
  incarnation: string;
  host: string;
  core: NativeCore;
  redis: Redis;
  store: FleetStore;
  arena: RankArena;
  staging: RankStaging;
  log: Logger;
  /** The swap that is under way, if any; never rejects. */
  swapping: Promise<void>;
  /** The progress of the reload at hand; a new reload begins a new one. */
  report(owner: Owner, plan: LoadedPlan): ProgressReport;
}

export async function readFleet({ store, fleet }: Rank): Promise<FleetSnapshot> {
  const known = await store.read(fleet);
  if (known === null)
    throw new LayercastError("rank_lost", `fleet ${fleet} is not known any more; this rank registers again`);
  return known;
}

/** Tells the fleet what the control page shows, in the same write as what follows from it. */
export async function tellArena(rank: Rank, swapMs: number | null): Promise<FleetState> {
  const live = rank.arena.liveState();
  const undo = undoOf(rank);
  const { state } = await rank.store.transact(rank.fleet, (draft, { now }) =>
    reportArena(draft, rank.key, rank.incarnation, { live, undo, swapMs }, now),
  );
  return state;
}

export function undoOf({ staging }: Rank): Held | null {
  const { staging: current } = staging.ledger();
  return current.kind === "undo" ? current.held : null;
}

/** Keeps one report for the reload at hand. */
export function reportKeeper(
  redis: Redis,
  log: Logger,
  who: Pick<Rank, "replica" | "rank" | "incarnation">,
): Rank["report"] {
  let current: { reload: string; report: ProgressReport } | null = null;
  return ({ reload }, plan) => {
    if (current?.reload !== reload) {
      const { replica, rank, incarnation } = who;
      const report = openReport(redis, log, reload, { replica, rank, incarnation }, plan.layout.layers.length);
      current = { reload, report };
    }
    return current.report;
  };
}
