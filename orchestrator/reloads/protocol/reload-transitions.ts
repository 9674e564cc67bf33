// The life of a reload: each function is one transition, refuses a wrong origin and is the only writer of that state.
// `queued -> planning -> loading -> finalizing -> committing -> committed`, or failed, cancelled, superseded.

import { type ErrorReport, LayercastError } from "../../contract/errors.js";
import type { RankKey } from "../../contract/jobs.js";
import type { ReloadStateName } from "../../contract/reload.js";
import {
  activeReload,
  type Context,
  expectedRanks,
  type FleetState,
  type Held,
  isLive,
  isTerminal,
  missingRanks,
  type ReloadRecord,
  requireActive,
  type Token,
} from "./state.js";

/** What a submission brings; the rest of the record is the protocol's. */
export type NewReload = Pick<
  ReloadRecord,
  | "id"
  | "kind"
  | "submissionId"
  | "content"
  | "weightVersion"
  | "priority"
  | "coalesce"
  | "inPlace"
  | "layoutDigest"
  | "healMs"
> & { deadlineMs: number };

/** -> queued. With `coalesce: latest`, older undecided reloads give way to it. */
export function submit(state: FleetState, reload: NewReload, { now }: Context): ReloadRecord {
  const { deadlineMs, ...given } = reload;
  state.sequence += 1;
  const record: ReloadRecord = {
    ...given,
    fleet: state.fleet,
    previousWeightVersion: null,
    state: "queued",
    epoch: null,
    sequence: state.sequence,
    deadlineAt: now + deadlineMs,
    enqueued: {},
    enqueueings: 0,
    tokens: {},
    swaps: {},
    liveChanged: false,
    supersededBy: null,
    error: null,
    warnings: [],
    times: { created: now, admitted: null, planned: null, decided: null, ended: null },
  };
  if (record.coalesce === "latest") {
    for (const older of Object.values(state.reloads)) supersede(state, older, record.id, now);
  }
  state.reloads[record.id] = record;
  return record;
}

/** queued | planning | loading | finalizing -> superseded. */
function supersede(state: FleetState, record: ReloadRecord, by: string, now: number): void {
  if (record.kind !== "reload" || isTerminal(record) || isPastReturn(record)) return;
  record.supersededBy = by;
  end(state, record, "superseded", now);
}

/** queued -> planning, with the next epoch, if the fleet has no active reload and all its ranks are there (P1). */
export function admitNext(state: FleetState, context: Context): ReloadRecord | null {
  const next = nextInQueue(state);
  if (next === null || state.active !== null || waitsForRanks(state, context) !== null) return null;
  state.epoch += 1;
  state.active = next.id;
  next.state = "planning";
  next.epoch = state.epoch;
  next.previousWeightVersion = state.committed?.weightVersion ?? null;
  next.times.admitted = context.now;
  return next;
}

export function nextInQueue(state: FleetState): ReloadRecord | null {
  return queuedReloads(state)[0] ?? null;
}

/** In the order they will be admitted: by priority, then as submitted. */
export function queuedReloads(state: FleetState): ReloadRecord[] {
  return Object.values(state.reloads)
    .filter((record) => record.state === "queued")
    .sort((a, b) => b.priority - a.priority || a.sequence - b.sequence);
}

/** Why no reload can be admitted for want of ranks, or null. */
export function waitsForRanks(state: FleetState, context: Context): string | null {
  if (state.topology === null) return `no rank of fleet ${state.fleet} has registered`;
  const missing = missingRanks(state, context);
  if (missing.length === 0) return null;
  const expected = expectedRanks(state).length;
  return `${expected - missing.length} of ${expected} ranks are there; waiting for ${missing.join(", ")} (replica/rank)`;
}

/** planning -> loading. The other half of the arenas is being overwritten from here on: only a rollback's own undo stays (P2). */
export function beginLoading(state: FleetState, reload: string, epoch: number, layout: string, now: number): void {
  const record = requireActive(state, reload, epoch);
  if (record.state !== "planning") return;
  record.state = "loading";
  record.layoutDigest = layout;
  record.times.planned = now;
  for (const rank of Object.values(state.ranks)) {
    if (rank.undo?.content !== record.content) rank.undo = null;
  }
  if (record.inPlace) record.liveChanged = state.committed !== null;
}

/** These incarnations were sent their layer and finalize jobs. Said after the sending: a crash between sends them again. */
export function markEnqueued(
  state: FleetState,
  reload: string,
  epoch: number,
  incarnations: Record<RankKey, string>,
): void {
  const record = requireActive(state, reload, epoch);
  Object.assign(record.enqueued, incarnations);
  record.enqueueings += 1;
}

/** loading | finalizing -> finalizing: a rank is prepared (P3). */
export function handInToken(state: FleetState, reload: string, rank: RankKey, token: Token): void {
  const record = requireActive(state, reload, token.epoch);
  if (state.ranks[rank]?.incarnation !== token.incarnation) {
    throw new LayercastError("stale_job", `rank ${rank} has a newer incarnation than ${token.incarnation}`, { rank });
  }
  if (record.state !== "loading" && record.state !== "finalizing") return;
  record.tokens[rank] = token;
  record.state = "finalizing";
}

/** Ranks whose current incarnation has not handed in a token that still holds. */
export function unpreparedRanks(state: FleetState, record: ReloadRecord): RankKey[] {
  return expectedRanks(state).filter((key) => {
    const rank = state.ranks[key];
    const token = record.tokens[key];
    return (
      rank === undefined ||
      token === undefined ||
      token.incarnation !== rank.incarnation ||
      token.epoch !== record.epoch ||
      token.generation !== rank.live.generation
    );
  });
}

/** finalizing -> committing, the decision: every current incarnation is prepared. Not routable from here on (P3). */
export function decide(state: FleetState, reload: string, epoch: number, context: Context): void {
  const record = requireActive(state, reload, epoch);
  if (record.state === "committing") return;
  const waiting = [...new Set([...unpreparedRanks(state, record), ...missingRanks(state, context)])];
  if (record.state !== "finalizing" || waiting.length > 0) {
    throw new LayercastError("not_prepared", `reload ${reload} waits for ranks ${waiting.join(", ")} to be prepared`, {
      reload,
      state: record.state,
      waiting,
    });
  }
  requireEqualReplicas(record);
  record.state = "committing";
  record.liveChanged = true;
  record.times.decided = context.now;
}

/** The same rank of two replicas must have staged the same bytes. */
function requireEqualReplicas(record: ReloadRecord): void {
  const digests = new Map<string, string>();
  for (const [key, token] of Object.entries(record.tokens)) {
    const rank = key.slice(key.indexOf("/") + 1);
    const other = digests.get(rank);
    if (other !== undefined && other !== token.digest) {
      throw new LayercastError(
        "source_changed",
        `rank ${rank} staged digest ${token.digest} in one replica and ${other} in another`,
        {
          rank: Number(rank),
        },
      );
    }
    digests.set(rank, token.digest);
  }
}

/** committing -> committed, and routable, in one step: every current incarnation shows it live, its lease valid (P5). */
export function publish(state: FleetState, context: Context): ReloadRecord | null {
  const record = activeReload(state);
  if (record === null || record.state !== "committing" || record.epoch === null) return null;
  const target = { content: record.content, epoch: record.epoch };
  const ranks = Object.values(state.ranks);
  if (missingRanks(state, context).length > 0 || !ranks.every((rank) => isLive(rank, target))) return null;
  state.previous = state.committed;
  state.committed = heldBy(record);
  state.torn = false;
  end(state, record, "committed", context.now);
  return record;
}

/** What the arenas hold once this reload is live. */
export function heldBy(record: ReloadRecord): Held {
  return {
    reload: record.id,
    content: record.content,
    weightVersion: record.weightVersion,
    epoch: record.epoch ?? 0,
    layoutDigest: record.layoutDigest ?? "",
  };
}

/** queued | planning | loading | finalizing -> cancelled. */
export function cancel(state: FleetState, reload: string, now: number): void {
  const record = state.reloads[reload];
  if (record === undefined || isTerminal(record) || isPastReturn(record)) {
    const why =
      record?.inPlace && record.state !== "committing" ? "writes in place and has begun to" : "is decided or has ended";
    throw new LayercastError("not_cancellable", `reload ${reload} ${why}, it can no longer be cancelled`, {
      state: record?.state ?? null,
    });
  }
  end(state, record, "cancelled", now);
}

/** planning | loading | finalizing -> failed; nothing live has changed, unless it writes in place. */
export function fail(state: FleetState, reload: string, epoch: number, error: ErrorReport, now: number): void {
  const record = activeReload(state);
  if (record === null || record.id !== reload || record.epoch !== epoch || record.state === "committing") return;
  record.error = error;
  if (record.liveChanged) tear(state, record, error);
  end(state, record, "failed", now);
}

/** Anything unfinished -> failed once its time is over: the deadline before the decision, heal_ms after it (P10). */
export function enforceDeadlines(state: FleetState, now: number): void {
  for (const record of Object.values(state.reloads)) {
    if (isTerminal(record)) continue;
    const decidedAt = record.times.decided;
    if (decidedAt === null ? now < record.deadlineAt : now < decidedAt + record.healMs) continue;
    const waitedFor = decidedAt === null ? `the decision (state ${record.state})` : "every rank to show it live";
    record.error = {
      code: "deadline_exceeded",
      message: `the deadline passed while waiting for ${waitedFor}; give it more time, or look at the ranks' logs`,
      retryable: false,
      details: { state: record.state, waited_for_ranks: unpreparedRanks(state, record) },
    };
    if (record.liveChanged) tear(state, record, record.error);
    end(state, record, "failed", now);
  }
}

/** The one kind of failure that may have changed live bytes: said aloud, and healed by the next commit. */
function tear(state: FleetState, record: ReloadRecord, cause: ErrorReport): void {
  state.torn = true;
  record.error = {
    code: "fleet_torn",
    message: `ranks of fleet ${state.fleet} may hold different weights: ${cause.message}. Submit a good checkpoint: its commit heals the fleet`,
    retryable: false,
    details: { cause },
  };
}

/** Decided, or writing live bytes already: there is no way back. */
function isPastReturn(record: ReloadRecord): boolean {
  return record.state === "committing" || (record.inPlace && record.times.planned !== null);
}

function end(state: FleetState, record: ReloadRecord, to: ReloadStateName, now: number): void {
  record.state = to;
  record.times.ended = now;
  if (state.active === record.id) state.active = null;
}
