// What keeps a push going from what is recorded of it, whoever looks: buckets are kept, ranks are sent their jobs, a bucket that
// nobody has any more is asked for again, and a trainer that has gone is not waited for. Doing it twice is harmless.

import { LayercastError, reportError } from "../../contract/errors.js";
import { fail, finishPush, noteWanted } from "../../fleet/reload-transitions.js";
import type { SessionBucket, Summary, Taker } from "../../fleet/session-store.js";
import { activeReload, expectedRanks, type FleetState, type ReloadRecord } from "../../fleet/state.js";
import { faultPoint } from "../../host/fault-point.js";
import type { DriveDeps } from "../deps.js";
import { isSignalKept } from "../enqueue-reload.js";

/** The next steps of the fleet's active push, if there is one. */
export async function drivePush(deps: DriveDeps, state: FleetState): Promise<void> {
  const record = openPush(state);
  const summary = record === null ? null : await deps.sessions.summary(record.id);
  if (record === null || summary === null) return;
  if (summary.finished && !record.push?.finished) {
    await deps.store.transact(state.fleet, (draft) => finishPush(draft, record.id)); // the orchestrator that finished it died in between
  } else if (!summary.finished && (await isIdle(deps, state, record, summary))) {
    return;
  }
  await dropPassed(deps, record, summary);
  if (summary.retain === "trainer") await wantLost(deps, record, takersOf(state));
  await sendBuckets(deps, state);
}

/** Keeps the buckets that have arrived, and sends each to the ranks that were not sent it. */
export async function sendBuckets(deps: DriveDeps, state: FleetState): Promise<void> {
  const record = openPush(state);
  const summary = record === null ? null : await deps.sessions.summary(record.id);
  if (record === null || summary === null) return;
  const takers = takersOf(state);
  if (summary.retain === "spool") spoolBuckets(deps, record, summary, takers);
  await tellWanted(deps, record, summary);
  if (record.state !== "committing") await sendUnsent(deps, record, summary, takers);
}

function openPush(state: FleetState): ReloadRecord | null {
  const record = activeReload(state);
  return record?.push && record.epoch !== null && record.state !== "planning" ? record : null;
}

/** Every incarnation that a bucket waits for. */
export function takersOf(state: FleetState): Taker[] {
  return expectedRanks(state).flatMap((rank) => {
    const incarnation = state.ranks[rank]?.incarnation;
    return incarnation === undefined ? [] : [{ rank, incarnation }];
  });
}

async function isIdle(
  deps: DriveDeps,
  { fleet }: FleetState,
  record: ReloadRecord,
  summary: Summary,
): Promise<boolean> {
  const { source } = (await deps.records.read(record.id)).request;
  const idleMs = source?.kind === "push" ? source.idleMs : Number.POSITIVE_INFINITY;
  const silentMs = summary.now - summary.touchedAt;
  if (silentMs < idleMs) return false;
  const error = new LayercastError(
    "deadline_exceeded",
    `the trainer has sent nothing for ${silentMs} ms, and the push was opened with idle_ms ${idleMs}; open another, or allow more`,
    { idle_ms: idleMs, silent_ms: silentMs, buckets: summary.accepted },
  );
  await deps.store.transact(fleet, (draft, { now }) =>
    fail(draft, record.id, record.epoch ?? 0, reportError(error), now),
  );
  return true;
}

/** In the background: ranks read the trainer's file meanwhile. */
function spoolBuckets(deps: DriveDeps, record: ReloadRecord, { unspooled }: Summary, takers: Taker[]): void {
  for (const sequence of unspooled) {
    const key = `${record.id}/${sequence}`;
    if (deps.spooling.has(key)) continue;
    const kept = keepBucket(deps, record, sequence, takers).finally(() => deps.spooling.delete(key));
    deps.spooling.set(key, kept);
  }
}

/** What cannot be kept fails the push: a trainer would wait for it to be consumed. What may be kept later, a sweep tries again. */
async function keepBucket(deps: DriveDeps, record: ReloadRecord, sequence: number, takers: Taker[]): Promise<void> {
  const { id: reload, fleet, epoch } = record;
  const { store, log } = deps;
  try {
    await copyToSpool(deps, reload, sequence);
    await deps.sessions.taken(reload, sequence, null, takers);
  } catch (error) {
    log.warn({ reload, sequence, err: error }, "a bucket could not be kept");
    if (!(error instanceof LayercastError) || error.retryable) return;
    await store
      .transact(fleet, (draft, { now }) => fail(draft, reload, epoch ?? 0, reportError(error), now))
      .catch((failure: unknown) => log.warn({ reload, err: failure }, "failing a push failed; a sweep tries again"));
  }
}

/** Another orchestrator may be faster: then the trainer's file may be the trainer's again, and one copy is enough. */
async function copyToSpool(deps: DriveDeps, reload: string, sequence: number): Promise<void> {
  const { sessions, spool } = deps;
  const bucket = await sessions.bucket(reload, sequence);
  if (bucket.spooled) return;
  try {
    const file = await keepAsAccepted(deps, reload, bucket);
    await faultPoint("orchestrator.bucket_spooled");
    if (!(await sessions.spooled(reload, bucket, file))) await spool.giveUp(file.path);
  } catch (error) {
    if (!(await sessions.bucket(reload, sequence)).spooled) throw error;
  }
}

/** What was written over, or removed, while it was copied is not what was accepted. */
async function keepAsAccepted({ spool, sources }: DriveDeps, reload: string, { file, immutable }: SessionBucket) {
  const kept = await spool.keep(reload, file.path, immutable).catch(async (error: unknown) => {
    await sources.requireSameBucket(file);
    throw error;
  });
  if (immutable && kept.headerDigest === file.headerDigest && kept.sizeBytes === file.sizeBytes) return kept;
  try {
    await sources.requireSameBucket(file);
    return kept;
  } catch (error) {
    await spool.giveUp(kept.path);
    throw error;
  }
}

/** Bodies that are kept only until they are consumed. */
async function dropPassed({ sessions, spool }: DriveDeps, { id }: ReloadRecord, { passing }: Summary): Promise<void> {
  for (const sequence of passing) {
    const bucket = await sessions.bucket(id, sequence);
    if (bucket.state === "pending") continue;
    await spool.giveUp(bucket.file.path);
    await sessions.passed(id, bucket);
  }
}

/** A rank that has registered again needs what nobody keeps. */
async function wantLost({ sessions }: DriveDeps, { id }: ReloadRecord, takers: Taker[]): Promise<void> {
  for (const sequence of await sessions.lost(id, takers)) await sessions.want(id, sequence);
}

/** The record says what is wanted: the deadline is the fleet's. */
async function tellWanted(
  { store, sessions }: DriveDeps,
  { id, fleet, push }: ReloadRecord,
  { wanted }: Summary,
): Promise<void> {
  const numbers = await Promise.all(wanted.map(async (sequence) => (await sessions.bucket(id, sequence)).number));
  if (numbers.join() === (push?.wanted ?? []).join()) return;
  await store.transact(fleet, (draft) => noteWanted(draft, id, numbers));
}

/** To each incarnation what it was not sent: a new one is sent all. */
async function sendUnsent(deps: DriveDeps, record: ReloadRecord, { log }: Summary, takers: Taker[]): Promise<void> {
  const { id: reload, fleet, epoch, inPlace, times } = record;
  if (inPlace && (times.signalled === null || !(await isSignalKept(deps, fleet, reload)))) return;
  const { retry } = await deps.plans.load(reload);
  const send = async (taker: Taker) => {
    const from = await deps.sessions.sentTo(reload, taker);
    if (from >= log) return;
    const deliveries = await deps.sessions.deliveries(reload, from, log);
    await deps.queues.addBuckets({ fleet, reload, epoch: epoch ?? 0, retry }, taker, deliveries);
    await faultPoint("orchestrator.buckets_sent");
    await deps.sessions.noteSent(reload, taker, log);
  };
  await Promise.all(takers.map(send));
}
