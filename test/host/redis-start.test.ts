// Redis when a process starts: waited for, or the reason why waiting cannot help.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Redis } from "ioredis";
import { afterEach, describe, expect, it } from "vitest";
import { startPrivateRedis } from "../../orchestrator/cli/local/redis-server.js";
import { unsafeSettings, waitForRedis } from "../../orchestrator/host/redis-start.js";
import { usePrivateRedis } from "../private-redis.js";

let redis: Redis;
usePrivateRedis("start", (opened) => {
  redis = opened;
});
const url = () => `unix:${redis.options.path}`;

describe("a Redis that takes writes", () => {
  it("is there at once, and nothing is said", async () => {
    const noted: unknown[] = [];
    expect(await waitForRedis(url(), (error) => noted.push(error))).toContain("redis_version:");
    expect(noted).toEqual([]);
  });
});

describe("a Redis that is not there yet, or takes no writes", () => {
  afterEach(() => redis.call("REPLICAOF", "NO", "ONE"));

  it("is waited for until it is started", async () => {
    const directory = mkdtempSync(join(tmpdir(), "layercast-late-"));
    const noted: string[] = [];
    const waited = waitForRedis(`unix:${join(directory, "redis.sock")}`, (error) => noted.push(String(error)));
    await expect.poll(() => noted.length).toBeGreaterThan(0);
    const server = await startPrivateRedis({ directory, appendOnly: false });
    expect(await waited).toContain("redis_version:");
    expect(noted[0]).toContain("ENOENT");
    await server.stop();
    rmSync(directory, { recursive: true, force: true });
  });

  it("is waited for while it is a replica", async () => {
    await redis.call("REPLICAOF", "127.0.0.1", "1");
    const noted: string[] = [];
    const waited = waitForRedis(url(), (error) => noted.push(String(error)));
    await expect.poll(() => noted.join()).toContain("READONLY");
    await redis.call("REPLICAOF", "NO", "ONE");
    expect(await waited).toContain("role:master");
  });

  it("is waited for no longer than who waits wants", async () => {
    const stopping = new AbortController();
    const waited = waitForRedis("redis://127.0.0.1:1", () => stopping.abort(), stopping.signal);
    await expect(waited).rejects.toThrow(/abort/i);
  });
});

describe("a Redis that refuses for good", () => {
  afterEach(async () => {
    await redis.config("SET", "requirepass", "").catch(() => {});
    await redis.call("ACL", "DELUSER", "limited");
  });
  const refusal = (address: string) => waitForRedis(address, () => {}).catch((error: unknown) => error);

  it("for want of a password says so, with what to do, as wrong use", async () => {
    await redis.config("SET", "requirepass", "a-password");
    await redis.auth("a-password");
    expect(await refusal(url())).toMatchObject({
      code: "invalid_request",
      message: expect.stringMatching(/NOAUTH.*give REDIS_URL the user and the password\.$/),
    });
  });

  it("a user without INFO, or without the keys, says which right is missing", async () => {
    for (const rights of [
      ["~*", "+@all", "-info"],
      ["~other*", "+@all"],
    ]) {
      await redis.call("ACL", "SETUSER", "limited", "reset", "on", ">secret-word", "&*", ...rights);
      await redis.call("CONFIG", "SET", "port", "0");
      const found = await refusal(await overTcp(redis));
      expect(found).toMatchObject({
        code: "invalid_request",
        message: expect.stringContaining("the rights that docs"),
      });
      expect(String((found as Error).message)).not.toContain("secret-word");
    }
  });
});

/** Unix addresses carry no user. */
async function overTcp(server: Redis): Promise<string> {
  const port = 20_000 + Math.floor(Math.random() * 20_000);
  await server.config("SET", "port", String(port));
  return `redis://limited:secret-word@127.0.0.1:${port}`;
}

describe("settings that are unsafe", () => {
  const SAFE = "redis_version:7.2.4\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\ncluster_enabled:0\r\n";

  it("are not those of the private Redis", () => {
    expect(unsafeSettings(SAFE)).toEqual([]);
  });

  it.each([
    ["maxmemory_policy:noeviction", "maxmemory_policy:allkeys-lru", /maxmemory-policy allkeys-lru.*noeviction/],
    ["maxmemory_policy:noeviction", "maxmemory_policy:volatile-ttl", /volatile-ttl/],
    ["aof_enabled:1", "aof_enabled:0", /append-only file.*appendonly yes/],
    ["cluster_enabled:0", "cluster_enabled:1", /Cluster.*not support/],
    ["redis_version:7.2.4", "redis_version:6.0.16", /6\.0\.16.*6\.2 or newer/],
  ])("%s -> %s is said", (from, to, words) => {
    expect(unsafeSettings(SAFE.replace(from, to))).toEqual([expect.stringMatching(words)]);
  });
});
