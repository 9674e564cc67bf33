// What a test does to a cluster's private Redis: asks it, kills it, makes it forget.

import { rmSync } from "node:fs";
import { join } from "node:path";
import { connectRedis } from "../../../orchestrator/host/redis.js";
import type { Cluster } from "../cluster.js";

/** One command over a connection of its own. */
export async function askRedis(cluster: Cluster, command: string, ...args: readonly string[]): Promise<unknown> {
  const redis = connectRedis(cluster.redisUrl, "patient");
  redis.on("error", () => undefined); // it goes on trying; the test's deadline ends that
  try {
    return await redis.call(command, ...args);
  } finally {
    redis.disconnect();
  }
}

export async function redisPid(cluster: Cluster): Promise<number> {
  const [, pid] = /process_id:(\d+)/.exec(String(await askRedis(cluster, "INFO", "server"))) ?? [];
  return Number(pid);
}

/** SIGKILL, and waits for the next life of it to answer. */
export async function killRedis(cluster: Cluster): Promise<void> {
  const pid = await redisPid(cluster);
  process.kill(pid, "SIGKILL");
  await cluster.until("Redis to be back", async () => ((await redisPid(cluster)) === pid ? null : true));
}

/** The same, and the next life knows nothing: the file is taken away under the one that still writes to it. */
export async function makeRedisForget(cluster: Cluster): Promise<void> {
  rmSync(join(cluster.runDir, "redis", "appendonlydir"), { recursive: true });
  await killRedis(cluster);
}
