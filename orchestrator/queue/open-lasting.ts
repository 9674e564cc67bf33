// BullMQ's objects ask Redis for its version when they are made. One that got no answer then never works: here it is made again.

import { setTimeout as delay } from "node:timers/promises";
import type { Worker } from "bullmq";
import { LayercastError } from "../contract/errors.js";
import { redisTrouble } from "../host/redis-trouble.js";

interface Opened {
  waitUntilReady(): Promise<unknown>;
  close(): Promise<void>;
}

export interface Lasting<One> {
  /** One that works; throws when Redis does not answer, and the next call tries again. */
  get(): Promise<One>;
  close(): Promise<void>;
}

const READY_WITHIN_MS = 5_000;
const OPEN_AGAIN_MS = 500;

export function openLasting<One extends Opened>(open: () => One): Lasting<One> {
  let current: One | null = null;
  return {
    async get() {
      current ??= open();
      const one = current;
      try {
        await readyInTime(one);
        return one;
      } catch (error) {
        if (current === one) current = null;
        one.close().catch(() => {});
        throw error;
      }
    },
    async close() {
      await current?.close();
    },
  };
}

export async function readyInTime(one: Opened): Promise<void> {
  const late = new AbortController();
  const timeout = delay(READY_WITHIN_MS, null, { signal: late.signal }).then(() => {
    throw new LayercastError("redis_unavailable", `Redis did not answer within ${READY_WITHIN_MS} ms. Try again.`);
  });
  try {
    await Promise.race([one.waitUntilReady(), timeout]);
  } finally {
    late.abort();
    timeout.catch(() => {});
  }
}

/** Waits for as long as it takes; throws what waiting does not mend. */
export async function openConsumer<Data>(open: () => Worker<Data>): Promise<Worker<Data>> {
  for (;;) {
    const worker = open();
    try {
      await worker.waitUntilReady();
      return worker;
    } catch (error) {
      worker.close(true).catch(() => {});
      if (redisTrouble(error)?.kind !== "not_now") throw error;
    }
    await delay(OPEN_AGAIN_MS);
  }
}
