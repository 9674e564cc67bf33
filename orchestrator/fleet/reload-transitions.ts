// The life of a reload: each function is one transition, refuses a wrong origin and is the only writer of that state.
// `queued -> planning -> loading -> finalizing -> committing -> committed`, or failed, cancelled, superseded.

import { countOf } from "../contract/count-of.js";
import { type ErrorReport, LayercastError } from "../contract/errors.js";
import type { RankKey } from "../contract/jobs.js";
import type { ReloadStateName } from "../contract/reload.js";
import { refuseUnderEngines, startingEngines } from "./engine-leases.js";
import {
  activeReload,
  allLive,
  type Context,
  expectedRanks,
  type FleetState,
  type Held,
  isTerminal,
  missingRanks,
  type ReloadRecord,
  requireActive,
  shows,
  type Token,
  type Warning,
} from "./state.js";
import { tear } from "./torn-fleet.js";

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
  | "push"
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
    engineStop: null,
    liveChanged: false,
    supersededBy: null,
    error: null,
    warnings: [],
    times: { created: now, admitted: null, planned: null, decided: null, signalled: null, ended: null },
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
  return `${expected - missing.length} of ${countOf(expected, "rank")} are there; waiting for ${missing.join(", ")} (replica/rank)`;
}

/** planning -> loading. The other half of the arenas is being overwritten from here on: only a rollback's own undo stays (P2). */
export function beginLoading(state: FleetState, reload: string, epoch: number, layout: string, now: number): void {
  const record = requireActive(state, reload, epoch);
  if (record.state !== "planning") return;
  refuseUnderEngines(state, record, layout);
  record.state = "loading";
  record.layoutDigest = layout;
  record.times.planned = now;
  for (const rank of Object.values(state.ranks)) {
    if (rank.undo?.content !== record.content) rank.undo = null;
  }
  if (record.inPlace) stopEngines(state, record, now);
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

/**
 * finalizing -> committing, the decision: every current incarnation is prepared. Not routable from here on (P3). `onDisk`
 * when this very write will be on disk before anyone reads it; otherwise confirmDecision() follows. While an engine starts it does
 * nothing: when that is over, the next look at the fleet decides (P14).
 */
export function decide(state: FleetState, reload: string, epoch: number, context: Context, onDisk: boolean): void {
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
  requireEqualReplicas(state, record);
  if (startingEngines(state).length > 0) return;
  record.state = "committing";
  record.times.decided = context.now;
  state.decidedEpoch = epoch;
  if (onDisk) confirmDecision(state, reload, epoch, context.now);
}

/** The decision is on disk, as far as this Redis can do it: no death can take it back, so live bytes may follow it. */
export function confirmDecision(state: FleetState, reload: string, epoch: number, now: number): void {
  const record = requireActive(state, reload, epoch);
  if (record.state !== "committing" || record.times.signalled !== null || isStopping(state, record)) return;
  stopEngines(state, record, now);
}

/** Engines stand still before live bytes change, where there are hooks; otherwise ranks may begin at once. */
function stopEngines(state: FleetState, record: ReloadRecord, now: number): void {
  const { hooks } = state;
  if (hooks === null) {
    signal(state, record, now);
    return;
  }
  const { id: reload, epoch } = record;
  state.engineStop = {
    reload,
    epoch: epoch ?? 0,
    hooks,
    phase: "pausing",
    caller: state.engineStop?.caller ?? null, // a call for the one before may still be on its way
    pausedAt: null,
    failure: null,
  };
}

function isStopping({ engineStop }: FleetState, record: ReloadRecord): boolean {
  return engineStop?.reload === record.id;
}

/** The one word that ranks wait for before they change live bytes. There is no way back from here (P10). */
export function signal(state: FleetState, record: ReloadRecord, now: number): void {
  if (record.times.signalled !== null) return;
  record.times.signalled = now;
  record.liveChanged = !record.inPlace || state.committed !== null;
}

/** The same rank of two replicas must have staged the same bytes. */
function requireEqualReplicas(state: FleetState, record: ReloadRecord): void {
  const digests = new Map<string, string>();
  for (const key of expectedRanks(state)) {
    const token = record.tokens[key];
    if (token === undefined) continue;
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
  if (missingRanks(state, context).length > 0 || !allLive(state, heldBy(record))) return null;
  if (!areEnginesGoing(state, record)) return null;
  state.previous = state.committed;
  state.committed = heldBy(record);
  state.torn = false;
  end(state, record, "committed", context.now);
  return record;
}

/** Resumed, or at least asked to: one that does not answer keeps the fleet unroutable, but takes no commit back. */
function areEnginesGoing(state: FleetState, record: ReloadRecord): boolean {
  const { engineStop } = state;
  if (engineStop === null) return true;
  if (engineStop.reload !== record.id) engineStop.phase = "resuming"; // left standing by a torn fleet that this one heals
  return engineStop.reload !== record.id || engineStop.failure !== null;
}

/** Every rank shows the reload that they stand still for: nothing keeps the engines any longer. */
export function letEnginesGo(state: FleetState): void {
  const record = activeReload(state);
  const { engineStop } = state;
  if (record?.state !== "committing" || engineStop?.reload !== record.id || engineStop.phase !== "paused") return;
  if (!allLive(state, heldBy(record))) return;
  engineStop.phase = "resuming";
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

/** All that a push sends has come: ranks may finalize. Nothing waits for a word that comes late. */
export function finishPush(state: FleetState, reload: string): void {
  const record = state.reloads[reload];
  if (record?.push) record.push.finished = true;
}

/** These buckets are to be sent again. */
export function noteWanted(state: FleetState, reload: string, wanted: number[]): void {
  const record = state.reloads[reload];
  if (record?.push) record.push.wanted = wanted;
}

/** A rank's warning, `details.ranks` its key; one that warns of the same as another rank joins that one's. */
export function warn(state: FleetState, reload: string, epoch: number, warning: Warning): void {
  const record = requireActive(state, reload, epoch);
  const known = record.warnings.find(({ code }) => code === warning.code);
  if (known === undefined) record.warnings.push(warning);
  else known.details.ranks = [...new Set([...ranksOf(known), ...ranksOf(warning)])].sort();
}

function ranksOf({ details }: Warning): unknown[] {
  return Array.isArray(details.ranks) ? details.ranks : [];
}

/** planning | loading | finalizing -> failed; nothing live has changed, unless it writes in place. */
export function fail(state: FleetState, reload: string, epoch: number, error: ErrorReport, now: number): void {
  const record = activeReload(state);
  if (record === null || record.id !== reload || record.epoch !== epoch || record.state === "committing") return;
  failNow(state, record, error, now);
}

/** -> failed. If live bytes may have changed, the fleet is torn. */
export function failNow(state: FleetState, record: ReloadRecord, error: ErrorReport, now: number): void {
  record.error = error;
  if (record.liveChanged) tear(state, record, error);
  end(state, record, "failed", now);
}

/** Anything admitted -> failed: Redis came back without this reload's end, and a rank shows a later one (P13). */
export function overtake(state: FleetState, record: ReloadRecord, by: Held, now: number): void {
  record.error = {
    code: "redis_unavailable",
    message: `Redis came back without the end of this reload, and a rank holds weight version ${by.weightVersion} of the later epoch ${by.epoch}; submit again if those are not the weights that you want`,
    retryable: false,
    details: { epoch: by.epoch, weight_version: by.weightVersion },
  };
  end(state, record, "failed", now);
}

/** Anything unfinished -> failed once its time is over: the deadline before the decision, heal_ms after it (P10). */
export function enforceDeadlines(state: FleetState, now: number): void {
  for (const record of Object.values(state.reloads)) {
    if (isTerminal(record)) continue;
    const decidedAt = record.times.decided;
    if (decidedAt === null ? now < record.deadlineAt : now < decidedAt + record.healMs) continue;
    const wanted = record.push?.wanted ?? [];
    if (wanted.length > 0) {
      failNow(state, record, notSentAgain(wanted), now);
      continue;
    }
    const starting = decidedAt === null && isPrepared(state, record) ? startingEngines(state) : [];
    if (starting.length > 0) {
      failNow(state, record, engineStarting(starting), now);
      continue;
    }
    const waitedFor = decidedAt === null ? `the decision (state ${record.state})` : "every rank to show it live";
    const error: ErrorReport = {
      code: "deadline_exceeded",
      message: `the deadline passed while waiting for ${waitedFor}; give it more time, or look at the ranks' logs`,
      retryable: false,
      details: { state: record.state, waited_for_ranks: ranksWaitedFor(state, record) },
    };
    failNow(state, record, error, now);
  }
}

function isPrepared(state: FleetState, record: ReloadRecord): boolean {
  return record.state === "finalizing" && unpreparedRanks(state, record).length === 0;
}

function engineStarting(engines: string[]): ErrorReport {
  const isOne = engines.length === 1;
  return {
    code: "engine_starting",
    message:
      `All ranks were prepared, but ${isOne ? "engine" : "engines"} ${engines.join(", ")} ${isOne ? "was" : "were"} still starting ` +
      "when the deadline passed, and cannot be stopped for a swap until started. Submit again once that is over, with a longer deadline if it takes long.",
    retryable: false,
    details: { engines },
  };
}

function notSentAgain(buckets: number[]): ErrorReport {
  return {
    code: "source_gone",
    message: `buckets ${buckets.join(", ")} were needed again and not sent again before the deadline; push again, with retain: spool or a longer deadline`,
    retryable: false,
    details: { buckets },
  };
}

function ranksWaitedFor(state: FleetState, record: ReloadRecord): RankKey[] {
  return record.state === "committing" ? ranksNotLive(state, record) : unpreparedRanks(state, record);
}

/** Ranks that do not show the reload yet. */
export function ranksNotLive(state: FleetState, record: ReloadRecord): RankKey[] {
  return expectedRanks(state).filter((key) => !shows(state, key, heldBy(record)));
}

/** Decided, or writing live bytes already: there is no way back. */
function isPastReturn(record: ReloadRecord): boolean {
  return record.state === "committing" || record.times.signalled !== null;
}

function end(state: FleetState, record: ReloadRecord, to: ReloadStateName, now: number): void {
  record.state = to;
  record.times.ended = now;
  if (state.active === record.id) state.active = null;
  // A torn fleet's engines stay still until the commit that heals it: they would serve a mix of two weight versions.
  if (isStopping(state, record) && state.engineStop !== null && !state.torn) state.engineStop.phase = "resuming";
}
