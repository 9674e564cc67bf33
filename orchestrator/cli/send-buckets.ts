// Buckets -> a push session that has all of them: each is sent when there is room for it, sent again when it is wanted again, and
// its file, where it has one, is there no longer than somebody may read it.

import { mkdir, rm, writeFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import { LayercastError } from "../contract/errors.js";
import type { BucketView } from "../contract/push.js";
import type { CutBucket } from "./cut-buckets.js";
import type { Client } from "./http-client.js";
import { bucketBody } from "./stored-checkpoint.js";

/** How buckets get there. They are spoken of by index; the session's number of one is known once it was sent. */
export interface Delivery {
  send(index: number): Promise<BucketView>;
  numberOf(index: number): number | undefined;
  /** The session needs nothing of it any more. */
  release(index: number): Promise<void>;
}

export interface Sending {
  client: Client;
  reload: string;
  buckets: number;
  delivery: Delivery;
  /** So many may be there that are not consumed; a bucket beyond it would be refused. */
  pendingBuckets: number;
  /** How long a bucket may be refused for want of room, or an orchestrator be away. */
  patienceMs: number;
  /** Numbers of the buckets that the session wants again, as far as is known. */
  wanted(): readonly number[];
  /** Aborted when the reload has ended. */
  signal: AbortSignal;
}

const FIRST_POLL_MS = 5;
const LONGEST_POLL_MS = 500;
const CONSUMED_WAIT_MS = 10_000;
const WANTED_POLL_MS = 200;

/** Resolves when the session takes buckets: it has been its turn, and there is a plan. */
export async function whenTaking(client: Client, reload: string, signal: AbortSignal): Promise<void> {
  for (let pollMs = FIRST_POLL_MS; ; pollMs = Math.min(2 * pollMs, LONGEST_POLL_MS)) {
    const { state } = await client.reload(reload);
    if (state !== "queued" && state !== "planning") return;
    await sleep(pollMs, null, { signal });
  }
}

/** Sends all buckets and finishes the session; then goes on sending what is wanted again until the signal comes. */
export async function sendBuckets(sending: Sending): Promise<void> {
  const { client, reload, buckets, pendingBuckets, signal } = sending;
  for (let index = 0; index < buckets; index++) {
    if (index >= pendingBuckets) await whenConsumed(sending, index - pendingBuckets);
    await sendWanted(sending);
    await sendPatiently(sending, index);
  }
  await patiently(sending, () => client.finish(reload));
  while (!signal.aborted) {
    await sendWanted(sending);
    await sleep(WANTED_POLL_MS, null, { signal });
  }
}

async function whenConsumed(sending: Sending, index: number): Promise<void> {
  const { client, reload, delivery, signal } = sending;
  while (true) {
    signal.throwIfAborted();
    const number = delivery.numberOf(index) ?? index;
    const { state } = await patiently(sending, () => client.bucket(reload, number, CONSUMED_WAIT_MS));
    if (state === "consumed") return await delivery.release(index);
    if (state === "wanted") await sendPatiently(sending, index);
    else await sleep(FIRST_POLL_MS, null, { signal });
  }
}

/** What is known to be wanted may have been sent since: the bucket itself knows. */
async function sendWanted(sending: Sending): Promise<void> {
  const { client, reload, buckets, delivery } = sending;
  for (const number of sending.wanted()) {
    const { state } = await patiently(sending, () => client.bucket(reload, number, 0));
    if (state !== "wanted") continue;
    for (let index = 0; index < buckets; index++) {
      if (delivery.numberOf(index) === number) await sendPatiently(sending, index);
    }
  }
}

/** An answer that was lost on its way is asked for, where the number is known: a bucket may be gone as soon as it is consumed. */
async function sendPatiently(sending: Sending, index: number): Promise<BucketView> {
  const { client, reload, delivery } = sending;
  let isRepeat = false;
  return patiently(sending, async () => {
    const number = delivery.numberOf(index);
    if (isRepeat && number !== undefined) {
      const known = await client.bucket(reload, number, 0).catch(nullWhenUnknown);
      if (known !== null && known.state !== "wanted") return known;
    }
    isRepeat = true;
    return delivery.send(index);
  });
}

/** Tries again what may work later, when the answer says to. */
async function patiently<Result>({ patienceMs, signal }: Sending, attempt: () => Promise<Result>): Promise<Result> {
  const deadline = performance.now() + patienceMs;
  while (true) {
    signal.throwIfAborted();
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof LayercastError && error.retryable) || performance.now() > deadline) throw error;
      const { retry_after_s: seconds } = error.details;
      await sleep(typeof seconds === "number" ? seconds * 1_000 : LONGEST_POLL_MS, null, { signal });
    }
  }
}

function nullWhenUnknown(error: unknown): null {
  if (error instanceof LayercastError && error.code === "not_found") return null;
  throw error;
}

/** Each bucket is the body of a request. */
export function bodyDelivery(client: Client, reload: string, buckets: readonly CutBucket[]): Delivery {
  return {
    send: (index) => client.putBucket(reload, index, bucketBody(buckets[index] ?? [])),
    numberOf: (index) => index,
    release: async () => undefined,
  };
}

export interface FileDelivery extends Delivery {
  releaseAll(): Promise<void>;
}

/** Each bucket is a file in `directory`, which every worker must be able to read. */
export function fileDelivery(
  client: Client,
  reload: string,
  buckets: readonly CutBucket[],
  directory: string,
): FileDelivery {
  const numbers = new Map<number, number>();
  const written = new Set<number>();
  const pathOf = (index: number) => join(resolve(directory), `${reload}-${index}.safetensors`);
  const release = async (index: number) => {
    written.delete(index);
    await rm(pathOf(index), { force: true });
  };
  return {
    async send(index) {
      const path = pathOf(index);
      if (!written.has(index)) {
        await writeBucket(path, buckets[index] ?? []);
        written.add(index);
      }
      const answer = await client.postBucket(reload, { uri: pathToFileURL(path).href, immutable: true });
      numbers.set(index, answer.bucket);
      return answer;
    },
    numberOf: (index) => numbers.get(index),
    release,
    async releaseAll() {
      for (const index of written) await release(index);
    },
  };
}

/** Always a new file: what was sent under the name before may be kept by a link, and must not change. */
async function writeBucket(path: string, bucket: CutBucket): Promise<void> {
  try {
    await mkdir(dirname(path), { recursive: true });
    await rm(path, { force: true });
    await writeFile(path, bucketBody(bucket).chunks(), { flag: "wx" });
  } catch (error) {
    await rm(path, { force: true }).catch(() => undefined);
    if (error instanceof LayercastError) throw error;
    const reason = error instanceof Error ? error.message : String(error);
    throw new LayercastError(
      "invalid_request",
      `A bucket cannot be written to ${path} (${reason}): give another --bucket-dir, or none to send bodies`,
      { path },
      error,
    );
  }
}
