// A push on one rank: buckets are taken as their jobs come; at the rank barrier those that are left, and then it closes. A rank
// that has lost everything takes every bucket again, or starts from the file that it kept after the commit.

import { hostname } from "node:os";
import type { ControlPage } from "../../native/native.js";
import { bucketOnThisHost } from "../../orchestrator/checkpoint/host-files.js";
import { LayercastError } from "../../orchestrator/contract/errors.js";
import { faultPoint } from "../../orchestrator/fault-point.js";
import { NotYet } from "../../orchestrator/queue/retry.js";
import { type Held, isLive } from "../../orchestrator/reloads/protocol/state.js";
import { type SessionBucket, sessionGone } from "../../orchestrator/reloads/push/session-store.js";
import { isOwner, type Owner } from "../ledger.js";
import type { Loading } from "../loading.js";
import { closeIntake } from "./close-intake.js";
import { type Intake, type IntakeDeps, takeBucket } from "./intake.js";
import { isExportOf, stageExport } from "./kept-export.js";
import { showPush, warnOfOrder } from "./show-push.js";

/** One bucket's job. */
export async function takeOne(loading: Loading, sequence: number): Promise<void> {
  await openPush(loading);
  await takeOnce(loading, intakeOf(loading), sequence);
}

/** open -> prepared: all that has not been taken, then what waited for it. Returns how long the latter took. */
export async function preparePush(loading: Loading): Promise<number> {
  const { owner, pushes, report, scope, staging } = loading;
  const startedAt = performance.now();
  if (await isExportOf(loading)) {
    await stageExport(loading);
    return performance.now() - startedAt;
  }
  await openPush(loading);
  const intake = intakeOf(loading);
  await takeAll(loading, intake);
  report.phase("finalizing");
  await faultPoint("worker.finalize", scope);
  const closingAt = performance.now();
  await closeIntake(intake, depsOf(loading), staging);
  pushes.intakes.drop(owner);
  showPush(loading, intake);
  return performance.now() - closingAt;
}

/** Opens staging, the first time with an intake that has nothing. Two jobs may come here at once. */
async function openPush(loading: Loading): Promise<void> {
  const { owner, plan, mode, staging, report, pushes } = loading;
  const { staging: current } = staging.ledger();
  const isOpen = current.kind === "open" && isOwner(current, owner);
  if (isOpen && pushes.intakes.current(owner) !== null) return;
  if (!isOpen) pushes.intakes.drop(owner); // of staging that is no more
  requireBase(loading);
  await staging.open(owner, plan, mode);
  if (pushes.intakes.current(owner) !== null) return;
  pushes.intakes.open(owner, plan);
  report.phase("loading");
}

/** A partial push changes parts of what is live, which must be what it was planned on. */
function requireBase({ plan, pushes, owner }: Loading): void {
  const base = plan.push?.base ?? null;
  if (base === null) return;
  const { arena } = pushes;
  const isThere = isLive({ live: arena.liveState() }, base) || isTornBy(owner, base, arena.page());
  if (isThere && arena.standing()?.layoutDigest === plan.layoutDigest) return;
  const { held, state } = arena.liveState();
  throw new LayercastError(
    "not_prepared",
    `this rank holds ${held === null ? `no weights (its arena is ${state})` : `weight version ${held.weightVersion}`}, and a ` +
      `partial push changes parts of weight version ${base.weightVersion} in its layout; push all modules`,
    { needed: base.weightVersion, held: held?.weightVersion ?? null },
  );
}

/** A swap of this very push was cut off: nothing but what it writes again has changed. */
function isTornBy({ reload, epoch }: Owner, base: Held, page: ControlPage): boolean {
  return page.state === "torn" && page.reload === reload && page.epoch === epoch && page.content === base.content;
}

function intakeOf({ owner, pushes }: Loading): Intake {
  const intake = pushes.intakes.current(owner);
  if (intake !== null) return intake;
  throw new LayercastError("not_prepared", `reload ${owner.reload} lost its staging on this rank`, {
    reload: owner.reload,
  });
}

/** Again and again, for one that found no room may find it once another has been taken. */
async function takeAll(loading: Loading, intake: Intake): Promise<void> {
  const { owner, pushes } = loading;
  const count = await pushes.sessions.count(owner.content);
  if (count === 0) throw sessionGone(owner.content);
  let left = Array.from({ length: count }, (_, sequence) => sequence);
  for (;;) {
    const before = left.length;
    let reason: NotYet | null = null;
    const waiting: number[] = [];
    for (const sequence of left) {
      await takeOnce(loading, intake, sequence).catch((error: unknown) => {
        if (!(error instanceof NotYet)) throw error;
        reason = error;
        waiting.push(sequence);
      });
    }
    left = waiting;
    if (reason === null) return;
    if (left.length === before) throw reason;
  }
}

async function takeOnce(loading: Loading, intake: Intake, sequence: number): Promise<void> {
  const { owner, pushes, scope, plan } = loading;
  if (!intake.taken.has(sequence)) {
    await faultPoint("worker.bucket", scope);
    try {
      await takeWhereItIs(loading, intake, await bucketOf(loading, sequence));
    } finally {
      showPush(loading, intake);
    }
    await warnOfOrder(loading, intake, plan.push?.warnBufferBytes ?? 0);
    await faultPoint("worker.bucket_taken", scope);
  }
  if (intake.told.has(sequence)) return;
  await pushes.sessions.taken(owner.content, sequence, pushes.by, pushes.expected);
  intake.told.add(sequence);
}

/** The trainer's file, or the spool's once it lies there: it may come to lie there while it is being read. */
async function takeWhereItIs(loading: Loading, intake: Intake, bucket: SessionBucket): Promise<void> {
  try {
    await takeFrom(loading, intake, bucket);
  } catch (error) {
    const isGone = error instanceof LayercastError && MOVED.includes(error.code);
    const now = isGone ? await bucketOf(loading, bucket.sequence) : bucket;
    if (now.file.path === bucket.file.path && now.file.inode === bucket.file.inode) throw namingSpool(error, now);
    await takeFrom(loading, intake, now);
  }
}

async function takeFrom(loading: Loading, intake: Intake, bucket: SessionBucket): Promise<void> {
  const file = await bucketOnThisHost(bucket.file);
  await takeBucket(intake, { ...bucket, file }, depsOf(loading));
}

function namingSpool(error: unknown, { number, spooled, file }: SessionBucket): unknown {
  if (!spooled || !(error instanceof LayercastError) || error.code !== "source_not_found") return error;
  const host = hostname();
  return new LayercastError(
    "source_not_found",
    `bucket ${number} lies in the orchestrator's spool, as ${file.path}, and is not there on host ${host}: every worker must see the ` +
      "spool (--spool-dir) under the same path",
    { ...error.details, bucket: number, file: file.path, host },
    error,
  );
}

const MOVED = ["source_changed", "source_not_found"];
const WANTED_POLL_MS = 100;

async function bucketOf({ owner, pushes }: Loading, sequence: number): Promise<SessionBucket> {
  const bucket = await pushes.sessions.bucket(owner.content, sequence);
  if (bucket.isReadable) return bucket;
  throw new NotYet(`bucket ${bucket.number} is to be sent again`, WANTED_POLL_MS);
}

function depsOf({ pushes, staging, report }: Loading): IntakeDeps {
  return { core: pushes.core, work: pushes.work, run: staging.run, report };
}
