// When a decision is on disk (P3): no swap may follow one that a power failure can take back, as far as this Redis can tell.

import type { Redis } from "ioredis";
import { LayercastError } from "../contract/errors.js";
import { KEYS } from "../contract/jobs.js";
import { LONGEST_BLOCK_MS } from "../host/redis.js";

export interface Disk {
  /**
   * Whether there is nothing to wait for: each write is on disk before its answer is sent (`appendfsync always`), or this
   * Redis cannot say (no append-only file, or older than WAITAOF).
   */
  atOnce(): Promise<boolean>;
  /** Resolves when all that Redis has been told before is on its disk. */
  wait(): Promise<void>;
}

const WAIT_MS = LONGEST_BLOCK_MS;

/** `connect` gives a connection of its own to wait on, for WAITAOF keeps what comes after it waiting. */
export function openDisk(redis: Redis, connect: () => Redis): Disk {
  let known: Promise<boolean> | null = null;
  let waiting: Redis | null = null;
  redis.on("close", () => {
    known = null; // the next Redis may be another
  });
  const look = async () => {
    try {
      return await isAtOnce(redis);
    } catch (error) {
      known = null;
      throw error;
    }
  };
  return {
    atOnce: () => {
      known ??= look();
      return known;
    },
    async wait() {
      waiting ??= connect();
      // WAITAOF waits for its own connection's writes: with one of its own, for all that came before that one.
      await waiting.set(KEYS.diskMark, "1");
      const [local] = (await waiting.call("WAITAOF", "1", "0", String(WAIT_MS))) as number[];
      if (local !== 0) return;
      throw new LayercastError("redis_unavailable", `Redis did not bring its file to disk within ${WAIT_MS} ms`, {
        waitMs: WAIT_MS,
      });
    },
  };
}

async function isAtOnce(redis: Redis): Promise<boolean> {
  const persistence = await redis.info("persistence");
  if (!persistence.includes("aof_enabled:1")) return true;
  const [waitAof] = (await redis.call("COMMAND", "INFO", "WAITAOF")) as unknown[];
  return waitAof === null || (await readFsync(redis)) === "always";
}

/** null where CONFIG may not be asked, as with many hosted ones. */
async function readFsync(redis: Redis): Promise<string | null> {
  try {
    const [, value] = (await redis.config("GET", "appendfsync")) as string[];
    return value ?? null;
  } catch {
    return null;
  }
}
