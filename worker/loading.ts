// One reload's work on one rank, as whatever job or catching up is at it has it in hand.

import type { ReloadPlan } from "../orchestrator/fleet/plan-store.js";
import type { ReloadRecord } from "../orchestrator/fleet/state.js";
import type { Owner } from "./ledger.js";
import type { RankPushes } from "./push/rank-pushes.js";
import type { Rank, Sources } from "./rank.js";
import type { ProgressReport } from "./report.js";
import type { RankStaging } from "./staging.js";

export interface Loading {
  owner: Owner;
  plan: ReloadPlan;
  mode: "staged" | "in_place";
  staging: RankStaging;
  sources: Sources;
  report: ProgressReport;
  pushes: RankPushes;
  /** "0-1", for the fault points. */
  scope: string;
}

export function loadingOf(rank: Rank, record: Pick<ReloadRecord, "inPlace">, owner: Owner, plan: ReloadPlan): Loading {
  const mode = record.inPlace ? "in_place" : "staged";
  return {
    owner,
    plan,
    mode,
    staging: rank.staging,
    sources: rank.sources,
    report: rank.report(owner, plan),
    pushes: rank.pushes,
    scope: rank.key.replace("/", "-"),
  };
}
