// The one intake that staging is open for, and what of a layout it is opened with.

import type { NativeCore } from "../../native/native.js";
import type { ReloadPlan } from "../../orchestrator/fleet/plan-store.js";
import { layoutArena } from "../../orchestrator/program/arena-layout.js";
import { matricesOfRank, type RankMatrices } from "../../orchestrator/program/rank-matrices.js";
import type { Owner } from "../ledger.js";
import { type Intake, openIntake } from "./intake.js";

export interface Intakes {
  current(owner: Owner): Intake | null;
  /** A new one with nothing in it; what was there is dropped. */
  open(owner: Owner, plan: ReloadPlan): void;
  /** Gives its buffers back, and forgets it. */
  drop(): void;
}

export function keepIntakes(core: Pick<NativeCore, "closeBuffers">, rank: number): Intakes {
  let intake: Intake | null = null;
  let known: { mappingDigest: string; matrices: RankMatrices } | null = null;

  function matricesOf({ layout, mappingDigest }: ReloadPlan): RankMatrices {
    if (known?.mappingDigest !== mappingDigest) {
      known = { mappingDigest, matrices: matricesOfRank(layout, layoutArena(layout, rank), rank) };
    }
    return known.matrices;
  }

  function drop(): void {
    if (intake?.buffers) core.closeBuffers(intake.buffers);
    if (intake !== null) intake.buffers = null; // a caller that still shows it shows that
    intake = null;
  }

  return {
    current: (owner) => (intake !== null && isSame(intake.owner, owner) ? intake : null),
    open(owner, plan) {
      drop();
      intake = openIntake(owner, plan, matricesOf(plan));
    },
    drop,
  };
}

function isSame(one: Owner, other: Owner): boolean {
  return one.reload === other.reload && one.epoch === other.epoch;
}
