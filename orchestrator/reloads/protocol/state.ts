// The commit protocol's values: all that must be agreed on about a fleet, as one JSON document in Redis. Every transition is
// one function of this folder over a draft of it, without I/O, clock or randomness; the fleet store applies it by
// compare-and-set, so what the tests drive is what runs.

import { type ErrorReport, LayercastError } from "../../contract/errors.js";
import { type RankKey, rankKey } from "../../contract/jobs.js";
import { type ReloadStateName, TERMINAL_STATES } from "../../contract/reload.js";

/** Which weights some bytes are. */
export interface Held {
  /** The reload that swapped them in. */
  reload: string;
  /** The reload whose plan and source gave the bytes: itself, or a rollback's target. */
  content: string;
  weightVersion: string;
  epoch: number;
  layoutDigest: string;
}

/** A rank's arena as its control page shows it. */
export interface LiveArena {
  state: "empty" | "live" | "swapping" | "torn";
  /** Odd while swapping or torn. */
  generation: number;
  held: Held | null;
}

export interface RankState {
  key: RankKey;
  replica: number;
  rank: number;
  /** One life of the rank's process. */
  incarnation: string;
  host: string;
  pid: number;
  device: string;
  live: LiveArena;
  /** What the other half holds and a swap would bring back. */
  undo: Held | null;
  arenaPath: string;
  controlPath: string;
  /** Why it cannot catch up with what the fleet holds. */
  trouble: ErrorReport | null;
}

/** A rank's word that it has everything staged (P3). */
export interface Token {
  incarnation: string;
  epoch: number;
  /** Of the arena when it was prepared; the swap expects the same. */
  generation: number;
  /** Of all staged bytes. */
  digest: string;
  /** How long finalize took; the token's time less this is when the rank barrier fell. */
  finalizeMs: number;
  at: number;
}

export interface ReloadTimes {
  created: number;
  admitted: number | null;
  planned: number | null;
  decided: number | null;
  ended: number | null;
}

export interface Warning {
  code: string;
  message: string;
  details: Record<string, unknown>;
}

export interface ReloadRecord {
  id: string;
  kind: "reload" | "rollback";
  fleet: string;
  submissionId: string;
  content: string;
  weightVersion: string;
  previousWeightVersion: string | null;
  state: ReloadStateName;
  /** Fleet-wide order of admission; null while queued. */
  epoch: number | null;
  /** Fleet-wide order of submission. */
  sequence: number;
  priority: number;
  coalesce: "never" | "latest";
  inPlace: boolean;
  layoutDigest: string | null;
  /** The time by which it must be decided. */
  deadlineAt: number;
  /** From the decision to the end. */
  healMs: number;
  /** Which incarnation of each rank was sent its layer and finalize jobs. */
  enqueued: Record<RankKey, string>;
  /** How often jobs were enqueued; part of every job id. */
  enqueueings: number;
  tokens: Record<RankKey, Token>;
  /** When each rank's swap began and ended. */
  swaps: Record<RankKey, { startedAt: number; endedAt: number }>;
  liveChanged: boolean;
  supersededBy: string | null;
  error: ErrorReport | null;
  warnings: Warning[];
  times: ReloadTimes;
}

export interface FleetState {
  fleet: string;
  /** Counts writes of this document; compare-and-set goes by it. */
  version: number;
  /** The highest epoch given or seen (P1, P13). */
  epoch: number;
  /** Counts submissions. */
  sequence: number;
  /** Known once the first rank has registered. */
  topology: { replicas: number; tensorParallelSize: number } | null;
  ranks: Record<RankKey, RankState>;
  /** The one admitted, unfinished reload. */
  active: string | null;
  /** Unfinished reloads; the store takes finished ones out when it has written their records. */
  reloads: Record<string, ReloadRecord>;
  committed: Held | null;
  /** What was committed before; where a rollback leads to. */
  previous: Held | null;
  routable: boolean;
  notRoutableReason: string | null;
  /** Ranks may hold different weights, and only the next commit heals it (P10). */
  torn: boolean;
  /** Queues of past incarnations, to be removed. */
  retiredQueues: string[];
}

/** What a transition may know besides the state. Times are Redis's, in milliseconds: hosts' clocks do not matter. */
export interface Context {
  now: number;
  leaseValid(rank: RankKey, incarnation: string): boolean;
}

export function newFleet(fleet: string): FleetState {
  return {
    fleet,
    version: 0,
    epoch: 0,
    sequence: 0,
    topology: null,
    ranks: {},
    active: null,
    reloads: {},
    committed: null,
    previous: null,
    routable: false,
    notRoutableReason: "no rank has registered",
    torn: false,
    retiredQueues: [],
  };
}

export function isTerminal(record: ReloadRecord): boolean {
  return TERMINAL_STATES.includes(record.state);
}

/** The keys that the fleet's topology calls for, registered or not. */
export function expectedRanks(state: FleetState): RankKey[] {
  if (state.topology === null) return [];
  const { replicas, tensorParallelSize } = state.topology;
  const keys: RankKey[] = [];
  for (let replica = 0; replica < replicas; replica++) {
    for (let rank = 0; rank < tensorParallelSize; rank++) keys.push(rankKey(replica, rank));
  }
  return keys;
}

/** Expected ranks that are not registered, or whose lease has run out. */
export function missingRanks(state: FleetState, context: Context): RankKey[] {
  return expectedRanks(state).filter((key) => {
    const rank = state.ranks[key];
    return rank === undefined || !context.leaseValid(key, rank.incarnation);
  });
}

export function activeReload(state: FleetState): ReloadRecord | null {
  return state.active === null ? null : (state.reloads[state.active] ?? null);
}

export function isLive(rank: Pick<RankState, "live">, target: Pick<Held, "content" | "epoch">): boolean {
  const { state, generation, held } = rank.live;
  if (state !== "live" || generation % 2 !== 0 || held === null) return false;
  return held.content === target.content && held.epoch === target.epoch;
}

/** The reload that a job, token or report speaks for, when it is still the active one; otherwise `stale_job`. */
export function requireActive(state: FleetState, reload: string, epoch: number): ReloadRecord {
  const active = activeReload(state);
  if (active === null || active.id !== reload || active.epoch !== epoch) {
    throw new LayercastError(
      "stale_job",
      `reload ${reload} (epoch ${epoch}) is not active in fleet ${state.fleet}; nothing was done`,
      { reload, epoch, active: state.active },
    );
  }
  return active;
}
