// What a rank tells its fleet: that it is there, what its arena shows, that it leaves.

import { type ErrorReport, LayercastError } from "../../contract/errors.js";
import { type RankKey, rankQueue } from "../../contract/jobs.js";
import { type Context, type FleetState, type Held, type LiveArena, newFleet, type RankState } from "./state.js";

export interface Registration extends RankState {
  replicas: number;
  tensorParallelSize: number;
}

/** A new incarnation of a rank; whatever was there before it is over. The fleet is not routable until it shows its weights (P8). */
export function register(state: FleetState, registration: Registration, context: Context): void {
  const { replicas, tensorParallelSize, ...rank } = registration;
  agreeOnTopology(state, rank.key, { replicas, tensorParallelSize }, context);
  const before = state.ranks[rank.key];
  if (before !== undefined && before.incarnation !== rank.incarnation) retire(state, before);
  state.ranks[rank.key] = rank;
  state.epoch = Math.max(state.epoch, rank.live.held?.epoch ?? 0);
}

/** All ranks of a fleet name the same topology; another one is taken on only when nobody of the old one is left. */
function agreeOnTopology(
  state: FleetState,
  joining: RankKey,
  topology: NonNullable<FleetState["topology"]>,
  context: Context,
): void {
  const known = state.topology;
  const same = known?.replicas === topology.replicas && known.tensorParallelSize === topology.tensorParallelSize;
  if (known !== null && !same) {
    const others = Object.values(state.ranks).filter(
      (rank) => rank.key !== joining && context.leaseValid(rank.key, rank.incarnation),
    );
    if (others.length > 0) {
      throw new LayercastError(
        "invalid_request",
        `fleet ${state.fleet} has ${known.replicas} replicas of ${known.tensorParallelSize} ranks; rank ${joining} says ` +
          `${topology.replicas} of ${topology.tensorParallelSize}. Stop the fleet's workers first, or use another fleet name`,
        { fleet: known, rank: topology },
      );
    }
    for (const rank of Object.values(state.ranks)) retire(state, rank);
    const fresh = newFleet(state.fleet);
    state.ranks = fresh.ranks;
    state.committed = fresh.committed;
    state.previous = fresh.previous;
    state.torn = fresh.torn;
  }
  state.topology = topology;
}

function retire(state: FleetState, rank: RankState): void {
  state.retiredQueues.push(rankQueue(state.fleet, rank.key, rank.incarnation));
}

/** What a rank's control page shows now. `swapMs` when it has just swapped for the active reload. */
export function reportArena(
  state: FleetState,
  key: RankKey,
  incarnation: string,
  arena: { live: LiveArena; undo: Held | null; swapMs: number | null },
  now: number,
): void {
  const rank = state.ranks[key];
  if (rank === undefined || rank.incarnation !== incarnation) {
    throw new LayercastError(
      "stale_job",
      `rank ${key} has a newer incarnation than ${incarnation}; this one must end`,
      {
        rank: key,
      },
    );
  }
  rank.live = arena.live;
  rank.undo = arena.undo;
  rank.trouble = null;
  const reload = arena.live.held === null ? undefined : state.reloads[arena.live.held.reload];
  if (reload !== undefined && arena.swapMs !== null && reload.state === "committing") {
    reload.swaps[key] ??= { startedAt: now - arena.swapMs, endedAt: now };
  }
}

/** A rank cannot load what the fleet holds; said until its arena shows something else. */
export function reportTrouble(state: FleetState, key: RankKey, incarnation: string, trouble: ErrorReport): void {
  const rank = state.ranks[key];
  if (rank?.incarnation === incarnation) rank.trouble = trouble;
}

/** A rank goes on purpose: its process is drained. */
export function leave(state: FleetState, key: RankKey, incarnation: string): void {
  const rank = state.ranks[key];
  if (rank === undefined || rank.incarnation !== incarnation) return;
  retire(state, rank);
  delete state.ranks[key];
}
