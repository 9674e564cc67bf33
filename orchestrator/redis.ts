// Connections to Redis. `redis://`, `rediss://`, or `unix:/path/to.sock`.

import { Redis } from "ioredis";

export type RedisRole =
  /** Requests behind HTTP and the protocol's writes: fail fast and say so. */
  | "command"
  /** BullMQ's and pub/sub's: waits as long as it takes. */
  | "patient";

const COMMAND_TIMEOUT_MS = 5_000;

export function connectRedis(url: string, role: RedisRole): Redis {
  const options = {
    maxRetriesPerRequest: role === "command" ? 1 : null,
    retryStrategy: (attempt: number) => Math.min(50 * 2 ** Math.min(attempt, 6), 1_000),
    ...(role === "command" ? { commandTimeout: COMMAND_TIMEOUT_MS } : { reconnectOnError: refusesWrites }),
  };
  return url.startsWith("unix:") ? new Redis({ ...options, path: url.slice("unix:".length) }) : new Redis(url, options);
}

/**
 * A Redis that takes no writes, or has no room for them. Who takes jobs asks again at once, without end: connecting anew puts
 * its pauses in between, and finds the Redis that has taken over, if one has.
 */
function refusesWrites(error: Error): boolean {
  return /^(READONLY|OOM|MISCONF) /.test(error.message);
}
