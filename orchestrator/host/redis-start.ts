// Redis when a process starts: it is waited for, with a line now and then; what waiting cannot mend ends the process with a
// sentence; what is unsafe about it is said.

import { setTimeout as delay } from "node:timers/promises";
import { LayercastError } from "../contract/errors.js";
import { KEYS } from "../contract/jobs.js";
import { openRedis, redisPlace } from "./redis.js";
import { explainTrouble, type RedisTrouble, redisTrouble } from "./redis-trouble.js";

const TRY_EVERY_MS = 500;
const ANSWER_WITHIN_MS = 5_000;

/**
 * Resolves, with what Redis says of itself (INFO), once it takes a write. Each try that fails is told to `note`. Throws
 * `invalid_request` when somebody must change REDIS_URL or that Redis first, and the signal's reason at its abort.
 */
export async function waitForRedis(url: string, note: (error: unknown) => void, signal?: AbortSignal): Promise<string> {
  for (;;) {
    try {
      return await tryOnce(url);
    } catch (error) {
      if (redisTrouble(error)?.kind !== "not_now") throw explainStart(url, error);
      note(error);
    }
    await delay(TRY_EVERY_MS, null, signal === undefined ? {} : { signal });
  }
}

function wrongSettings(url: string, trouble: RedisTrouble): LayercastError {
  const place = redisPlace(url);
  return new LayercastError("invalid_request", `Redis at ${place}: ${explainTrouble(trouble)}`, {
    redis: trouble.code,
    place,
  });
}

/** What Redis threw while a process was starting, as an error of ours; any other error as it is. */
export function explainStart(url: string, error: unknown): unknown {
  const trouble = redisTrouble(error);
  if (trouble === null) return error;
  if (trouble.kind === "settings") return wrongSettings(url, trouble);
  return new LayercastError("redis_unavailable", `Redis at ${redisPlace(url)}: ${explainTrouble(trouble)}`);
}

/** As our scripts do: they ask for the life of Redis, and write. */
const PROBE = "redis.call('INFO', 'server') return redis.call('SET', KEYS[1], '', 'PX', 1000)";

/** INFO of a Redis that takes writes. */
async function tryOnce(url: string): Promise<string> {
  const redis = openRedis(url, {
    ...{ lazyConnect: true, enableReadyCheck: false, retryStrategy: () => null, maxRetriesPerRequest: 0 },
    ...{ commandTimeout: ANSWER_WITHIN_MS, socketTimeout: ANSWER_WITHIN_MS },
  });
  let said: unknown;
  redis.on("error", (error) => {
    said ??= error; // a connection that fails rejects with less than that
  });
  try {
    await redis.connect();
    const info = await redis.info();
    if (/^redis_mode:sentinel/m.test(info)) throw wrongSettings(url, SENTINEL);
    await redis.eval(PROBE, 1, KEYS.probe);
    return info;
  } catch (error) {
    throw said ?? error;
  } finally {
    redis.disconnect();
  }
}

const SENTINEL: RedisTrouble = {
  kind: "settings",
  code: "SENTINEL",
  reason: "it is a Sentinel, and Layercast does not ask Sentinels where the Redis is",
};

/** What may cost data or a fleet's service some day, each as a sentence. `info`: the reply of INFO. */
export function unsafeSettings(info: string): string[] {
  const has = (line: RegExp) => line.test(info);
  const field = (name: string) => new RegExp(`^${name}:(.*?)\\r?$`, "m").exec(info)?.[1] ?? "";
  const policy = field("maxmemory_policy");
  const isOld = /^redis_version:(?:[0-5]\.|6\.[01]\.)/m.test(info);
  return [
    ...(policy === "" || policy === "noeviction"
      ? []
      : [
          `Redis has maxmemory-policy ${policy}: when it is full it removes keys that Layercast needs. ` +
            "Set maxmemory-policy noeviction.",
        ]),
    ...(has(/^aof_enabled:0/m)
      ? [
          "Redis has no append-only file: what it knows is lost when it ends, and workers tell it only what they hold. " +
            "Set appendonly yes.",
        ]
      : []),
    ...(has(/^cluster_enabled:1/m)
      ? [
          "Redis is a node of a Redis Cluster, which Layercast does not support: it works only while this node has all of its keys.",
        ]
      : []),
    ...(isOld ? [`Redis is version ${field("redis_version")}; Layercast needs 6.2 or newer.`] : []),
  ];
}
