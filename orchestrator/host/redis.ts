// Connections to Redis: `redis://`, `rediss://`, or `unix:/path/to.sock`. A connection that has gone silent without being closed
// (a firewall that forgot it, a host that lost power) is given up and made again: each is asked something at all times, and one
// that answers nothing for SILENCE_MS is destroyed.

import { type RedisOptions as AllRedisOptions, Redis } from "ioredis";
import { throwErrorReplies } from "./redis-transactions.js";
import { redisTrouble } from "./redis-trouble.js";

export type RedisRole =
  /** Requests behind HTTP and the protocol's writes: fail fast and say so. */
  | "command"
  /** BullMQ's and pub/sub's: waits as long as it takes. */
  | "patient";

/** Replies keep the form that BullMQ reads. */
type RedisOptions = Omit<AllRedisOptions, "replyMapping">;

const COMMAND_TIMEOUT_MS = 5_000;
const SILENCE_MS = 5_000;
const PING_EVERY_MS = 2_000;
/** Well below SILENCE_MS: what Redis is asked to answer late must not be taken for silence. */
export const LONGEST_BLOCK_MS = 3_000;
const CONNECT_TIMEOUT_MS = 2_500;
/** How long a connection that this side has closed may stay open. */
const DISCONNECT_TIMEOUT_MS = 500;
const REFUSED_PAUSE_MS = 500;

export function connectRedis(url: string, role: RedisRole): Redis {
  return guarded(openRedis(url, optionsOf(role)));
}

/** As a URL names it, without a password: for people. */
export function redisPlace(url: string): string {
  if (url.startsWith("unix:")) return url.slice("unix:".length);
  const { hostname, port } = URL.canParse(url) ? new URL(url) : { hostname: "", port: "" };
  return `${hostname || "localhost"}:${port || "6379"}`;
}

export function openRedis(url: string, options: RedisOptions): Redis {
  const all = { connectTimeout: CONNECT_TIMEOUT_MS, disconnectTimeout: DISCONNECT_TIMEOUT_MS, ...options };
  return url.startsWith("unix:") ? new Redis({ ...all, path: url.slice("unix:".length) }) : new Redis(url, all);
}

function optionsOf(role: RedisRole): RedisOptions {
  const shared = { socketTimeout: SILENCE_MS, retryStrategy: (attempt: number) => reconnectDelayMs(attempt) };
  if (role === "command") return { ...shared, maxRetriesPerRequest: 1, commandTimeout: COMMAND_TIMEOUT_MS };
  return { ...shared, ...outlastingRefusals(), maxRetriesPerRequest: null };
}

function reconnectDelayMs(attempt: number): number {
  return Math.min(50 * 2 ** Math.min(attempt, 6), 1_000);
}

/**
 * For a Redis that takes no writes, or has no room for them. Who takes jobs asks again at once, without end: to connect again puts
 * a pause in between, and finds the Redis that has taken over, if one has.
 */
function outlastingRefusals(): RedisOptions {
  let refused = false;
  return {
    reconnectOnError(error) {
      const trouble = redisTrouble(error);
      if (trouble === null || trouble.code === "NOSCRIPT") return false; // scripts are sent again on the same connection
      refused = true;
      return true;
    },
    retryStrategy(attempt) {
      const delayMs = refused ? REFUSED_PAUSE_MS : reconnectDelayMs(attempt);
      refused = false;
      return delayMs;
    },
  };
}

/** What BullMQ duplicates is guarded too. */
function guarded(redis: Redis): Redis {
  const { duplicate, bzpopmin } = redis;
  redis.duplicate = (options) => guarded(duplicate.call(redis, options));
  // Who waits for a job asks for it again when none has come.
  const wait = bzpopmin as (key: string, seconds: number) => Promise<[string, string, string] | null>;
  redis.bzpopmin = ((key: string, seconds: number) =>
    wait.call(redis, key, Math.min(seconds, LONGEST_BLOCK_MS / 1_000))) as Redis["bzpopmin"];
  throwErrorReplies(redis);
  keepAsking(redis);
  return redis;
}

function keepAsking(redis: Redis): void {
  let timer: NodeJS.Timeout | undefined;
  redis.on("ready", () => {
    clearInterval(timer);
    const ask = () => void redis.ping().catch(() => {}); // its failure shows as the connection's end
    timer = setInterval(ask, PING_EVERY_MS).unref();
  });
  redis.on("close", () => clearInterval(timer));
}

/** Redis's clock, ms. */
export async function redisNow(redis: Redis): Promise<number> {
  const [seconds, micros] = await redis.time();
  return Number(seconds) * 1_000 + Number(micros) / 1_000;
}
