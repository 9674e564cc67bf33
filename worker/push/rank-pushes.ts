// What a rank needs to take what is pushed: the session that knows its buckets, and the intake of the one push at hand.

import type { NativeCore } from "../../native/native.js";
import type { WarningReport } from "../../orchestrator/contract/reload.js";
import { layoutArena } from "../../orchestrator/planner/arena-layout.js";
import { matricesOfRank, type RankMatrices } from "../../orchestrator/planner/rank-matrices.js";
import type { LoadedPlan } from "../../orchestrator/reloads/plan-store.js";
import type { PushSessions, Taker } from "../../orchestrator/reloads/push/session-store.js";
import type { Owner } from "../ledger.js";
import type { NativeWork } from "../native-work.js";
import type { Files, RankArena } from "../rank-arena.js";
import { type Intake, openIntake } from "./intake.js";

export interface RankPushes {
  core: NativeCore;
  work: NativeWork;
  arena: RankArena;
  files: Files;
  sessions: PushSessions;
  /** Which rank of its replica. */
  rank: number;
  by: Taker;
  /** Whom a bucket waits for, as the fleet was when it was read last: who has come since is sent every bucket all the same. */
  expected: readonly Taker[];
  /** Once a reload and rank. */
  warn(owner: Owner, warning: WarningReport): Promise<void>;
  intakes: Intakes;
}

/** The intake of the push that staging is open for. */
export interface Intakes {
  current(owner: Owner): Intake | null;
  /** A new one: staging was opened just now, with nothing in it. */
  open(owner: Owner, plan: LoadedPlan): Intake;
  /** Gives its buffers back, and forgets it. */
  drop(owner: Pick<Owner, "reload" | "epoch">): void;
}

export function keepIntakes(core: NativeCore, rank: number): Intakes {
  let intake: Intake | null = null;
  let known: { mappingDigest: string; matrices: RankMatrices } | null = null;

  function matricesOf({ layout, mappingDigest }: LoadedPlan): RankMatrices {
    if (known?.mappingDigest !== mappingDigest) {
      known = { mappingDigest, matrices: matricesOfRank(layout, layoutArena(layout, rank), rank) };
    }
    return known.matrices;
  }

  function forget(): void {
    if (intake?.buffers) core.closeBuffers(intake.buffers);
    if (intake !== null) intake.buffers = null; // who still shows it shows that
    intake = null;
  }

  return {
    current: (owner) => (intake !== null && isSame(intake.owner, owner) ? intake : null),
    open(owner, plan) {
      forget();
      intake = openIntake(owner, plan, matricesOf(plan));
      return intake;
    },
    drop(owner) {
      if (intake !== null && isSame(intake.owner, owner)) forget();
    },
  };
}

function isSame(one: Pick<Owner, "reload" | "epoch">, other: Pick<Owner, "reload" | "epoch">): boolean {
  return one.reload === other.reload && one.epoch === other.epoch;
}
