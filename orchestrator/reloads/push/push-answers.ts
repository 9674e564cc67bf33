// What is asked about a push: its buckets, what it expects, how far it is.

import { LayercastError } from "../../contract/errors.js";
import type { BucketView, ExpectedTensorsView, PushView } from "../../contract/push.js";
import type { StoredReload } from "../../fleet/record-store.js";
import type { PushSessionStore, SessionBucket } from "../../fleet/session-store.js";
import { isTerminal } from "../../fleet/state.js";
import { modulesOf } from "../../program/modules.js";
import { rowCount } from "../../program/row-ranges.js";
import type { ReloadDeps } from "../deps.js";
import { readUntil } from "../follow-reload.js";
import type { Reloads } from "../reloads.js";
import { acceptBody, acceptFile } from "./accept-bucket.js";
import { takersOf } from "./drive-push.js";
import { finishSession } from "./finish-push.js";
import { requirePush } from "./open-push.js";

type PushAnswers = Pick<Reloads, "postBucket" | "putBucket" | "bucket" | "expectedTensors" | "finish">;

export function pushAnswers(deps: ReloadDeps): PushAnswers {
  const { sessions } = deps;
  const view = async (reload: string, sequence: number) => {
    const [stored, bucket] = await Promise.all([deps.records.read(reload), sessions.bucket(reload, sequence)]);
    return viewBucket(deps, stored, bucket);
  };
  return {
    postBucket: async (reload, request) => view(reload, await acceptFile(deps, reload, request)),
    putBucket: async (reload, number, body, sizeBytes) =>
      view(reload, await acceptBody(deps, reload, number, body, sizeBytes)),
    bucket: (reload, number, waitMs, signal) => waitForBucket(deps, reload, number, waitMs, signal),
    expectedTensors: (reload) => expectedTensors(deps, reload),
    finish: (reload) => finishSession(deps, reload),
  };
}

const POLL_MS = 500;

/** Answers once the bucket is not pending any more, its reload has ended, or the wait is over. */
async function waitForBucket(
  deps: ReloadDeps,
  reload: string,
  number: number,
  waitMs: number,
  signal: AbortSignal,
): Promise<BucketView> {
  const read = async () => {
    const stored = await deps.records.read(reload);
    requirePush(stored.record, stored.request.source);
    const bucket = await deps.sessions.byNumber(reload, number);
    if (bucket === null) throw unknownBucket(reload, number);
    if (waitMs > 0) await deps.sessions.touch(reload); // who waits is there
    return { stored, bucket };
  };
  const { stored, bucket } = await readUntil(
    { reload, waitMs, pollMs: POLL_MS, signal },
    deps.follower.changed,
    read,
    (now) => now.bucket.state !== "pending" || isTerminal(now.stored.record),
  );
  return viewBucket(deps, stored, bucket);
}

async function viewBucket(deps: ReloadDeps, { record }: StoredReload, bucket: SessionBucket): Promise<BucketView> {
  const known = await deps.store.read(record.fleet);
  const takers = known === null ? [] : takersOf(known.state);
  const held = await deps.sessions.takers(
    record.id,
    bucket.sequence,
    takers.map(({ rank }) => rank),
  );
  const waitingFor = takers.filter(({ incarnation }, at) => held[at] !== incarnation).map(({ rank }) => rank);
  return {
    reload_id: record.id,
    bucket: bucket.number,
    state: bucket.state,
    bytes: bucket.bytes,
    tensors: bucket.tensors,
    waiting_for: bucket.state === "consumed" || isTerminal(record) ? [] : waitingFor,
  };
}

async function expectedTensors(deps: ReloadDeps, reload: string): Promise<ExpectedTensorsView> {
  const { record, request, plan } = await deps.records.read(reload);
  requirePush(record, request.source);
  if (plan === null)
    throw new LayercastError("backpressure", `reload ${reload} is ${record.state} and not planned yet; ask again`, {
      state: record.state,
    });
  const { layout, source } = await deps.plans.load(reload);
  const rows = await deps.sessions.rows(reload);
  const modules = new Map<number, string[]>();
  for (const { name, tensors } of modulesOf(layout)) {
    for (const tensor of tensors) modules.set(tensor, [...(modules.get(tensor) ?? []), name]);
  }
  const tensors = layout.checkpointTensors.map(({ name, shape }, index) => ({
    name,
    dtype: source.dtype[index] ?? "BF16",
    shape,
    modules: modules.get(index) ?? [],
    rows_received: rowCount(rows.get(index) ?? []),
  }));
  return { tensors };
}

/** null: not a push. */
export async function viewPush(
  sessions: PushSessionStore,
  { record, request }: StoredReload,
): Promise<PushView | null> {
  if (!record.push || request.source?.kind !== "push") return null;
  const { retain, partial } = request.source;
  const { accepted = 0, consumed = 0 } = (await sessions.summary(record.id)) ?? {};
  const { finished, wanted } = record.push;
  return { retain, partial, finished, buckets: { accepted, consumed, wanted } };
}

function unknownBucket(reload: string, bucket: number): LayercastError {
  return new LayercastError("not_found", `reload ${reload} has no bucket ${bucket}`, { reload, bucket });
}
