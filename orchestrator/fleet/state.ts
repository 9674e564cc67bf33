// The commit protocol's values: all that must be agreed on about a fleet, as one JSON document in Redis. Every transition is
// one function of this folder over a draft of it, without I/O, clock or randomness; the fleet store applies it by
// compare-and-set, so what the tests drive is what runs.

import type { EngineLease } from "../contract/engines.js";
import { type ErrorReport, LayercastError } from "../contract/errors.js";
import { type Held, type RankKey, rankKey } from "../contract/jobs.js";
import { type ReloadStateName, TERMINAL_STATES } from "../contract/reload.js";

export type { Held };

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
  /** The release that the rank's process runs. A rank of a release before 0.2 does not say, nor its threads. */
  version?: string;
  /** Of its native core. */
  threads?: number;
  live: LiveArena;
  /** What the other half holds and a swap would bring back. */
  undo: Held | null;
  /** The life of Redis in which it registered; one from before must register again (P13). */
  redisRunId: string;
  arenaPath: string;
  controlPath: string;
  /** The file that its process has locked, as the kernel knows it: two arenas never share it. A record of an earlier version does not say. */
  lock?: string;
  /** Why it cannot catch up with what the fleet holds. */
  trouble: ErrorReport | null;
  /** A rank of an earlier release does not say. */
  engines?: EngineLease[];
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
  /** Since when ranks may change live bytes. */
  signalled: number | null;
  ended: number | null;
}

export interface Warning {
  code: string;
  message: string;
  details: Record<string, unknown>;
}

/** One HTTP request to each engine. */
export interface HookRequest {
  /** One for the whole fleet, or one a replica in their order. */
  urls: string[];
  method: string;
  /** JSON; null: none. */
  body: unknown;
}

export interface Hooks {
  pause: HookRequest;
  resume: HookRequest;
  timeoutMs: number;
  /** What becomes of the reload when an engine does not pause. */
  onFailure: "abort" | "proceed";
}

/** Engines that are asked to stand still, or stand still, until they have been let go again (P12). */
export interface EngineStop {
  reload: string;
  epoch: number;
  /** As they were when the stop began. */
  hooks: Hooks;
  /** Each is recorded before the call that it stands for. */
  phase: "pausing" | "paused" | "resuming";
  /** Who makes the call at hand, and until when nobody else may: a late pause after a resume would stop an engine for good. */
  caller: { name: string; until: number } | null;
  /** When the first engine stood still. */
  pausedAt: number | null;
  /** Why the last resume failed; it is tried again until it works. */
  failure: ErrorReport | null;
}

export interface PushRecord {
  /** All has been sent: ranks may finalize. */
  finished: boolean;
  /** Some modules only; all others keep their bytes. */
  partial: boolean;
  /** Numbers of the buckets that are to be sent again: nobody has their bytes any more. */
  wanted: number[];
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
  /** Of a push session; its buckets are known elsewhere. A record of an earlier version does not say: null. */
  push?: PushRecord | null;
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
  /** From the first pause's answer to the last resume's, when there are hooks. */
  engineStop: { startedAt: number; endedAt: number } | null;
  liveChanged: boolean;
  supersededBy: string | null;
  error: ErrorReport | null;
  warnings: Warning[];
  times: ReloadTimes;
}

/** What all ranks of a fleet must say alike. */
export interface Topology {
  replicas: number;
  tensorParallelSize: number;
  /** Whole experts by rank, none of them cut. A document of an earlier version does not say: false. */
  expertParallel?: boolean;
}

export interface FleetState {
  fleet: string;
  /** Counts writes of this document; compare-and-set goes by it. */
  version: number;
  /** The highest epoch given or seen (P1, P13). */
  epoch: number;
  /** The highest epoch known to have been decided; a rank that shows a higher one tells what Redis has forgotten. */
  decidedEpoch: number;
  /** Counts submissions. */
  sequence: number;
  /** Known once the first rank has registered. */
  topology: Topology | null;
  ranks: Record<RankKey, RankState>;
  /** Replicas that the others do not wait for; `joining` once it was asked back, or a rank of it has started again. */
  drained: Record<number, "out" | "joining">;
  /** The life of Redis that wrote this last (P13). */
  redisRunId: string | null;
  hooks: Hooks | null;
  engineStop: EngineStop | null;
  /** The one admitted, unfinished reload. */
  active: string | null;
  /** Unfinished reloads; the store takes finished ones out when it has written their records. */
  reloads: Record<string, ReloadRecord>;
  committed: Held | null;
  /** What was committed before; where a rollback leads to. */
  previous: Held | null;
  routable: boolean;
  notRoutableReason: string | null;
  /** Ranks may hold different weights, until the next commit or until all show what was decided (P10). */
  torn: boolean;
  /** Of the reload that tore it. A document of an earlier version does not say. */
  tornEpoch?: number | null;
  /** Queues of past incarnations, to be removed. */
  retiredQueues: string[];
}

/** What a transition may know besides the state. Times are Redis's, in milliseconds: hosts' clocks do not matter. */
export interface Context {
  now: number;
  redisRunId: string;
  leaseValid(rank: RankKey, incarnation: string): boolean;
}

export function newFleet(fleet: string): FleetState {
  return {
    fleet,
    version: 0,
    epoch: 0,
    decidedEpoch: 0,
    sequence: 0,
    topology: null,
    ranks: {},
    drained: {},
    redisRunId: null,
    hooks: null,
    engineStop: null,
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

/** The keys that the fleet's topology calls for, registered or not; drained replicas are not waited for. */
export function expectedRanks(state: FleetState): RankKey[] {
  return replicasOf(state)
    .filter((replica) => state.drained[replica] === undefined)
    .flatMap((replica) => ranksOfReplica(state, replica));
}

export function replicasOf({ topology }: FleetState): number[] {
  return Array.from({ length: topology?.replicas ?? 0 }, (_, replica) => replica);
}

export function ranksOfReplica({ topology }: FleetState, replica: number): RankKey[] {
  return Array.from({ length: topology?.tensorParallelSize ?? 0 }, (_, rank) => rankKey(replica, rank));
}

export function isExpertParallel({ topology }: Pick<FleetState, "topology">): boolean {
  return topology?.expertParallel ?? false;
}

/** Expected ranks that are not there. */
export function missingRanks(state: FleetState, context: Context): RankKey[] {
  return expectedRanks(state).filter((key) => !isThere(state, key, context));
}

/** Registered since Redis came up, its lease valid. */
export function isThere(state: FleetState, key: RankKey, context: Context): boolean {
  const rank = state.ranks[key];
  if (rank === undefined || rank.redisRunId !== context.redisRunId) return false;
  return context.leaseValid(key, rank.incarnation);
}

export function activeReload(state: FleetState): ReloadRecord | null {
  return state.active === null ? null : (state.reloads[state.active] ?? null);
}

/** Whether every rank that the fleet waits for shows the target. */
export function allLive(state: FleetState, target: Pick<Held, "content" | "epoch">): boolean {
  return expectedRanks(state).every((key) => shows(state, key, target));
}

/** Whether the rank has registered, and its live weights are the target. */
export function shows(state: FleetState, key: RankKey, target: Pick<Held, "content" | "epoch">): boolean {
  const rank = state.ranks[key];
  return rank !== undefined && isLive(rank, target);
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
