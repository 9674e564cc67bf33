// What lies in Redis that orchestrator and worker both touch: key names, queue names, job payloads, job ids.
// Every key carries one hash tag, so that a flow's queues share a slot on Redis Cluster.

import type { ErrorReport } from "./errors.js";
import { PLAN_FORMAT } from "./plan.js";

export const KEY_PREFIX = "{layercast}";

/** "0/1": replica 0, rank 1. */
export type RankKey = `${number}/${number}`;

export function rankKey(replica: number, rank: number): RankKey {
  return `${replica}/${rank}`;
}

export const KEYS = {
  /** Set of fleet names. */
  fleets: `${KEY_PREFIX}:fleets`,
  /** Hash of a fleet: `state` (FleetState as JSON) and `version`, by which every transition compares and sets. */
  fleet: (fleet: string) => `${KEY_PREFIX}:fleet:${fleet}`,
  /** Hash of a fleet's leases: rank key -> "incarnation|expires", in Redis's milliseconds. */
  leases: (fleet: string) => `${KEY_PREFIX}:leases:${fleet}`,
  /** Written to see whether Redis takes writes. */
  probe: `${KEY_PREFIX}:probe`,
  /** Written before waiting for the disk, so that there is something to wait for. */
  diskMark: `${KEY_PREFIX}:disk-mark`,
  /** Sorted set of reload ids of all fleets, by time of submit. */
  reloads: `${KEY_PREFIX}:reloads`,
  /** Hash of a reload: `record` (ReloadRecord as JSON), `request`, `plan` (StoredPlan), `rank:P/R` (RankReport). */
  reload: (id: string) => `${KEY_PREFIX}:reload:${id}`,
  /** Stream of a reload's events. */
  events: (id: string) => `${KEY_PREFIX}:events:${id}`,
  /** A reload's Source: JSON, deflated. */
  source: (id: string) => `${KEY_PREFIX}:source:${id}`,
  /** Of every Layout that is kept, in any format. */
  layouts: [`${KEY_PREFIX}:mapping-*`, `${KEY_PREFIX}:layout-*`],
  /** A Layout by its mapping digest: JSON, deflated. */
  mapping: (digest: string) => `${KEY_PREFIX}:mapping-${PLAN_FORMAT}:${digest}`,
  /** By a layout digest: the mapping digest of the newest Layout that has it. */
  layout: (digest: string) => `${KEY_PREFIX}:layout-${PLAN_FORMAT}:${digest}`,
  /** A push session's PushModel: JSON, deflated. */
  pushModel: (id: string) => `${KEY_PREFIX}:push-model:${id}`,
  /** Hash of a push session: what was accepted; all its fields are in reloads/push/session-scripts.ts. */
  session: (id: string) => `${KEY_PREFIX}:session:${id}`,
  /** Hash of a push session: index of a checkpoint tensor -> "from,to,sequence;..." of the rows that buckets have brought. */
  sessionRows: (id: string) => `${KEY_PREFIX}:session-rows:${id}`,
  /** Hash of a push session: "sequence/replica/rank" -> the incarnation that has taken the bucket. */
  sessionTaken: (id: string) => `${KEY_PREFIX}:session-taken:${id}`,
  /** List of the ids of a reload's events that make room for newer ones. */
  ticks: (id: string) => `${KEY_PREFIX}:ticks:${id}`,
  /** Reload id and body digest of a submission. */
  submission: (fleet: string, id: string) => `${KEY_PREFIX}:submission:${fleet}:${id}`,
} as const;

/** Of a reload's progress, retries and buckets so many events are kept, the newest. */
export const TICKS_KEPT = 2_000;

/** Pub/sub channels: hints that something changed; nobody relies on getting one. */
export const CHANNELS = {
  /** The fleet's state changed; the message is a FleetMessage as JSON. */
  fleet: `${KEY_PREFIX}:changed:fleet`,
  /** A reload's record, progress or events changed; the message is its id. */
  reload: `${KEY_PREFIX}:changed:reload`,
  /** A reload is terminal; the message is its id. */
  ended: `${KEY_PREFIX}:ended:reload`,
} as const;

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

export const CONTROL_QUEUE = "control";

/** A queue of its own for each incarnation of a rank: no process ever finds jobs meant for another. */
export function rankQueue(fleet: string, rank: RankKey, incarnation: string): string {
  return `rank-${fleet}-${rank.replace("/", "-")}-${incarnation}`;
}

/** What every job carries, so that whoever takes it can tell whether it is still wanted. */
interface Fenced {
  fleet: string;
  reload: string;
  epoch: number;
}

export type ControlJob = (Fenced & { kind: "start" }) | (Fenced & { kind: "decide" });

export interface RetryPolicy {
  attempts: number;
  backoffMs: number;
}

export type RankJob = { rank: RankKey; incarnation: string; retry: RetryPolicy } & (
  | (Fenced & {
      kind: "layer";
      /** Indexes into the plan's layers. */
      layers: number[];
    })
  | (Fenced & {
      kind: "bucket";
      /** Which of a push session's buckets, in which of its deliveries. */
      sequence: number;
      delivery: number;
    })
  | (Fenced & { kind: "finalize" })
  | (Fenced & { kind: "swap" })
  | { kind: "export"; fleet: string; file: string }
);

export interface ExportResult {
  path: string;
  bytes: number;
  weightVersion: string;
  arenaGeneration: number;
  host: string;
}

/** Job ids are never used twice: reload, epoch, kind, rank, incarnation and the number of the enqueueing. */
export function rankJobId(job: Exclude<RankJob, { kind: "export" }>, enqueueing: number): string {
  const { reload, epoch, kind, rank, incarnation } = job;
  return [reload, epoch, kind, rank.replace("/", "-"), incarnation, partOf(job), enqueueing].join(".");
}

function partOf(job: Exclude<RankJob, { kind: "export" }>): string {
  if (job.kind === "layer") return `${job.layers[0]}`;
  return job.kind === "bucket" ? `${job.sequence}-${job.delivery}` : "all";
}

export function controlJobId(job: ControlJob, enqueueing: number): string {
  return [job.reload, job.epoch, job.kind, enqueueing].join(".");
}

/** How the reason of a job's failure travels through the queue's one string. */
export function encodeFailure(report: ErrorReport): string {
  return JSON.stringify(report);
}

export function decodeFailure(reason: string): ErrorReport {
  try {
    return JSON.parse(reason) as ErrorReport;
  } catch {
    return { code: "internal", message: reason, retryable: true, details: {} }; // the queue's own words
  }
}

/** Backoff before try `attempt + 1`: doubles from `backoffMs`, capped, with up to half of it taken off at random. */
export function retryDelayMs(policy: RetryPolicy, attempt: number, random: number): number {
  const delayMs = Math.min(policy.backoffMs * 2 ** (attempt - 1), MAX_RETRY_DELAY_MS);
  return Math.round(delayMs * (1 - random / 2));
}

const MAX_RETRY_DELAY_MS = 10_000;
