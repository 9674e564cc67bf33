// What a rank tells its fleet: that it is there, what its arena shows, that it leaves.

import { countOf } from "../contract/count-of.js";
import type { EngineLease } from "../contract/engines.js";
import { type ErrorReport, LayercastError } from "../contract/errors.js";
import { type RankKey, rankQueue } from "../contract/jobs.js";
import { overtake, signal } from "./reload-transitions.js";
import {
  activeReload,
  type Context,
  type FleetState,
  type Held,
  isLive,
  type LiveArena,
  newFleet,
  type RankState,
  type Topology,
} from "./state.js";

export type Registration = Omit<RankState, "redisRunId" | "engines"> & {
  /** As this incarnation has told last; null: nothing yet. */
  engines: EngineLease[] | null;
  replicas: number;
  tensorParallelSize: number;
  expertParallel: boolean;
  /** That it has ever worked for; lower ones it refuses. */
  highestEpoch: number;
  lock: string;
  /** Displaces a living worker that has its arena elsewhere. */
  takeOver: boolean;
};

/**
 * A new incarnation of a rank; whatever was there before it is over. The fleet is not routable until it shows its weights (P8).
 * Throws `invalid_request` where a living worker has the rank and its arena elsewhere (P9).
 */
export function register(state: FleetState, registration: Registration, context: Context): void {
  const { replicas, tensorParallelSize, expertParallel, highestEpoch, takeOver, engines: told, ...rank } = registration;
  refuseOutside(registration);
  const living = livingElsewhere(state, registration, context);
  if (living !== null && !takeOver) throw isHeld(state, living);
  agreeOnTopology(state, rank.key, { replicas, tensorParallelSize, expertParallel }, context);
  const before = state.ranks[rank.key];
  const isNew = before?.incarnation !== rank.incarnation;
  if (before !== undefined && isNew) retire(state, before);
  if (before !== undefined && before.redisRunId !== context.redisRunId) askAgain(state, rank.key);
  if (isNew && state.drained[rank.replica] === "out") state.drained[rank.replica] = "joining";
  // Engines outlive their rank's worker: they are attached until its successor has told which of them call it again. What that has
  // told holds, also where a life of Redis without its last writes still has the worker before (P14).
  const engines = told ?? before?.engines;
  state.ranks[rank.key] = { ...rank, ...(engines && { engines }), redisRunId: context.redisRunId };
  if (rank.live.held !== null) recognize(state, rank.live, rank.live.held, context.now);
  state.epoch = Math.max(state.epoch, highestEpoch);
}

/**
 * The worker that holds the rank, where its lease is valid and it has locked another file. One that had locked the same file is
 * over: the new one has the lock.
 */
export function livingElsewhere(
  state: FleetState,
  { key, incarnation, lock }: Pick<Registration, "key" | "incarnation" | "lock">,
  context: Context,
): RankState | null {
  const holder = state.ranks[key];
  if (holder === undefined || holder.incarnation === incarnation || holder.lock === lock) return null;
  return context.leaseValid(key, holder.incarnation) ? holder : null;
}

function isHeld({ fleet }: FleetState, { key, host, pid, arenaPath }: RankState): LayercastError {
  return new LayercastError(
    "invalid_request",
    `Worker process ${pid} on ${host} holds rank ${key} of fleet ${fleet}, with its arena at ${arenaPath}, and is alive. ` +
      "Stop that worker first, correct --rank, --replica, --fleet or --run-dir, or replace that worker with --take-over.",
    { fleet, rank: key, host, pid, path: arenaPath },
  );
}

/**
 * Redis came back: the rank may have heard of an end that is forgotten now, and have given up what its token speaks for. It is
 * sent its jobs once more, and says again what it has prepared.
 */
function askAgain(state: FleetState, key: RankKey): void {
  const active = activeReload(state);
  if (active === null || active.state === "committing") return;
  delete active.tokens[key];
  delete active.enqueued[key];
}

/** An epoch in a control page was decided, even if Redis has forgotten it (P13). */
function recognize(state: FleetState, live: LiveArena, held: Held, now: number): void {
  const active = activeReload(state);
  if (active !== null && isLive({ live }, { content: active.content, epoch: active.epoch ?? 0 })) {
    active.state = "committing";
    active.times.decided ??= now;
    state.decidedEpoch = held.epoch;
    signal(state, active, now);
    return;
  }
  if (held.epoch <= state.decidedEpoch) return;
  state.decidedEpoch = held.epoch;
  if (active !== null && (active.epoch ?? 0) < held.epoch) overtake(state, active, held, now);
  state.previous = state.committed;
  state.committed = held;
}

/** No plan has such a rank, so nothing would ever reach it. */
function refuseOutside({ key, replica, rank, replicas, tensorParallelSize }: Registration): void {
  const isInside = replica >= 0 && replica < replicas && rank >= 0 && rank < tensorParallelSize;
  if (isInside) return;
  throw new LayercastError(
    "invalid_request",
    `Rank ${key} (replica/rank, counted from 0) lies outside of its own fleet of ${countOf(replicas, "replica")} of ` +
      `${countOf(tensorParallelSize, "rank")}. Correct its place, or the fleet's size.`,
    { rank: key, replicas, tensor_parallel_size: tensorParallelSize },
  );
}

/** All ranks of a fleet name the same topology; another one is taken on only when nobody of the old one is left. */
function agreeOnTopology(state: FleetState, joining: RankKey, topology: Topology, context: Context): void {
  const known = state.topology;
  if (known !== null && !isSame(known, topology)) {
    const others = Object.values(state.ranks).filter(
      (rank) => rank.key !== joining && context.leaseValid(rank.key, rank.incarnation),
    );
    if (others.length > 0) {
      throw new LayercastError(
        "invalid_request",
        `fleet ${state.fleet} has ${inWords(known)}; rank ${joining} says ${inWords(topology)}. ` +
          "Stop the fleet's workers first, or use another fleet name",
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

function isSame(known: Topology, topology: Topology): boolean {
  const { replicas, tensorParallelSize, expertParallel = false } = known;
  return (
    replicas === topology.replicas &&
    tensorParallelSize === topology.tensorParallelSize &&
    expertParallel === topology.expertParallel
  );
}

function inWords({ replicas, tensorParallelSize, expertParallel = false }: Topology): string {
  return `${countOf(replicas, "replica")} of ${countOf(tensorParallelSize, "rank")}, ${expertParallel ? "expert parallel" : "experts cut"}`;
}

function retire(state: FleetState, rank: RankState): void {
  state.retiredQueues.push(rankQueue(state.fleet, rank.key, rank.incarnation));
}

/** What a rank's control page shows now. `swap` when it has just swapped for the active reload. */
export function reportArena(
  state: FleetState,
  key: RankKey,
  incarnation: string,
  arena: { live: LiveArena; undo: Held | null; swap: { startedAt: number; endedAt: number } | null },
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
  if (reload?.state === "committing" && arena.swap !== null) reload.swaps[key] ??= arena.swap;
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
