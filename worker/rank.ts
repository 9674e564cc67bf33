// A rank as its parts know it: who it is, and what it works with.

import type { Logger } from "pino";
import type { NativeCore } from "../native/native.js";
import { LayercastError } from "../orchestrator/contract/errors.js";
import type { RankKey } from "../orchestrator/contract/jobs.js";
import type { CheckpointFile } from "../orchestrator/contract/plan.js";
import type { EventStore } from "../orchestrator/fleet/event-store.js";
import type { FleetSnapshot, FleetStore } from "../orchestrator/fleet/fleet-store.js";
import type { PlanStore, ReloadPlan } from "../orchestrator/fleet/plan-store.js";
import { reportArena } from "../orchestrator/fleet/rank-transitions.js";
import { expectedRanks, type FleetState, type Held } from "../orchestrator/fleet/state.js";
import type { RankEngines } from "./engines/rank-engines.js";
import type { Owner } from "./ledger.js";
import type { RankPushes } from "./push/rank-pushes.js";
import type { RankArena } from "./rank-arena.js";
import { openReport, type ProgressReport } from "./report.js";
import type { RankStaging } from "./staging.js";

/** A plan's source files as this host sees them. Looking at them throws `source_changed` or `source_not_found`. */
export interface Sources {
  /** The plan with its files as this host has them; those of the owner's first look, whoever asks again. */
  onThisHost(owner: Owner, plan: ReloadPlan): Promise<ReloadPlan>;
  /** Before the first read, headers included. */
  verify(files: readonly CheckpointFile[]): Promise<void>;
  /** After the last read. */
  requireUntouched(files: readonly CheckpointFile[]): Promise<void>;
  /** Hears what the live bytes came from, whenever those have changed; null: from nothing that stays. */
  becameLive(owner: Owner, plan: ReloadPlan | null): void;
}

export interface Rank {
  fleet: string;
  key: RankKey;
  replica: number;
  rank: number;
  /** One life of this process. */
  incarnation: string;
  host: string;
  /** The file that this process has locked, as the kernel knows it. */
  lock: string;
  device: string;
  /** The release that this process runs. */
  version: string;
  /** Of the whole fleet. */
  replicas: number;
  tensorParallelSize: number;
  expertParallel: boolean;
  core: NativeCore;
  store: FleetStore;
  plans: PlanStore;
  sources: Sources;
  arena: RankArena;
  staging: RankStaging;
  engines: Pick<RankEngines, "leases" | "close">;
  pushes: RankPushes;
  log: Logger;
  /** The swap that is under way, if any; never rejects. */
  swapping: Promise<void>;
  /** The catching up that is under way, if any. */
  catchingUp: Promise<void> | null;
  /** From then on a successor does not wait longer for this process than it must. */
  stopShowingLife(): void;
  /** Redis has taken the registration, or a sign of life. */
  showRegistered(): void;
  /** The progress of the reload at hand; a new reload begins a new one. */
  report(owner: Owner, plan: ReloadPlan): ProgressReport;
}

export async function readFleet({ store, fleet, pushes }: Rank): Promise<FleetSnapshot> {
  const known = await store.readOutline(fleet);
  if (known === null)
    throw new LayercastError("rank_lost", `fleet ${fleet} is not known any more; this rank registers again`);
  const { ranks } = known.state;
  pushes.expected = expectedRanks(known.state).map((rank) => ({ rank, incarnation: ranks[rank]?.incarnation ?? "" }));
  return known;
}

/** How long a swap took, and when it was over by this process's clock. */
export interface OwnSwap {
  ms: number;
  endedAt: number;
}

/** Tells the fleet what the control page shows, in the same write as what follows from it. */
export async function tellArena(rank: Rank, swap: OwnSwap | null): Promise<FleetState> {
  const live = rank.arena.liveState();
  const undo = undoOf(rank);
  const { state } = await rank.store.transact(rank.fleet, (draft, { now }) => {
    // By Redis's clock, whenever the report is taken.
    const endedAt = swap === null ? 0 : now - (performance.now() - swap.endedAt);
    const times = swap === null ? null : { startedAt: endedAt - swap.ms, endedAt };
    reportArena(draft, rank.key, rank.incarnation, { live, undo, swap: times });
  });
  return state;
}

export function undoOf({ staging }: Rank): Held | null {
  const { staging: current } = staging.ledger();
  return current.kind === "undo" ? current.held : null;
}

/** Keeps one report for the reload at hand. */
export function reportKeeper(
  events: EventStore,
  log: Logger,
  who: Pick<Rank, "replica" | "rank" | "incarnation">,
  pinnedBytes: () => number,
): Rank["report"] {
  let current: { reload: string; report: ProgressReport } | null = null;
  return ({ reload }, plan) => {
    if (current?.reload !== reload) {
      const { replica, rank, incarnation } = who;
      const layerCount = plan.layout.layers.length;
      const report = openReport(events, log, reload, { replica, rank, incarnation }, layerCount, pinnedBytes);
      current = { reload, report };
    }
    return current.report;
  };
}
