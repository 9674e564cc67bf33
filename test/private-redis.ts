// A real Redis of a test file's own, empty before each law.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Redis } from "ioredis";
import { afterAll, beforeAll, beforeEach } from "vitest";
import { type PrivateRedis, startPrivateRedis } from "../orchestrator/cli/local/redis-server.js";
import { connectRedis } from "../orchestrator/host/redis.js";

export function usePrivateRedis(name: string, use: (redis: Redis) => void): void {
  let directory: string;
  let server: PrivateRedis;
  let redis: Redis;
  beforeAll(async () => {
    directory = mkdtempSync(join(tmpdir(), `layercast-${name}-`));
    server = await startPrivateRedis({ directory, appendOnly: false });
    redis = connectRedis(server.url, "command");
    use(redis);
  });
  beforeEach(() => redis.flushall());
  afterAll(async () => {
    redis.disconnect();
    await server.stop();
    rmSync(directory, { recursive: true, force: true });
  });
}
