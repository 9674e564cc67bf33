// Buckets as a source: some rows each, in files that may go. They are taken as their jobs come; at the rank barrier those that are
// left. A rank that has lost everything takes every bucket again.

import { hostname } from "node:os";
import { bucketOnThisHost } from "../../orchestrator/checkpoint/host-files.js";
import { LayercastError } from "../../orchestrator/contract/errors.js";
import { type SessionBucket, sessionGone } from "../../orchestrator/fleet/session-store.js";
import { faultPoint } from "../../orchestrator/host/fault-point.js";
import { NotYet } from "../../orchestrator/queue/retry.js";
import type { Intake } from "../intake/intake.js";
import type { Loading } from "../loading.js";
import type { SourceKind } from "../source-kind.js";
import { showPush, warnOfOrder } from "./show-push.js";
import { type BucketDeps, rowsInBuffers, takeBucket } from "./take-bucket.js";

export const bucketSource: SourceKind = {
  onThisHost: async (loading) => loading, // each bucket's file is looked at by itself
  async verify() {},
  takeAll,
  rest: ({ pushes }, intake) => rowsInBuffers(intake, pushes),
  becameLive: ({ sources, owner }) => sources.becameLive(owner, null),
  closed: showPush,
};

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
      await takeOne(loading, intake, sequence).catch((error: unknown) => {
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

/** One bucket, unless it has been taken; the session is told so. */
export async function takeOne(loading: Loading, intake: Intake, sequence: number): Promise<void> {
  const { owner, pushes, scope, plan } = loading;
  if (!intake.taken.has(sequence)) {
    await faultPoint("worker.bucket", scope);
    try {
      await takeWhereItIs(loading, intake, await bucketOf(loading, sequence));
    } finally {
      showPush(loading, intake);
    }
    await warnOfOrder(loading, intake, plan.limits.warnBufferBytes);
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

function depsOf({ pushes, staging, report }: Loading): BucketDeps {
  return { core: pushes.core, work: pushes.work, run: staging.run, report };
}
