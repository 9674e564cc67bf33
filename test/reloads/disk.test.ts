// When a decision is on disk, by what a Redis says of itself. The answers are those of the Redis named.

import { EventEmitter } from "node:events";
import type { Redis } from "ioredis";
import { describe, expect, it } from "vitest";
import { openDisk } from "../../orchestrator/reloads/disk.js";

interface Answers {
  aof: boolean;
  waitAof: boolean;
  /** null: CONFIG is not allowed. */
  fsync: string | null;
  /** How many copies WAITAOF says are on this Redis's disk. */
  local?: number;
}

function redisThat({ aof, waitAof, fsync, local = 1 }: Answers) {
  const said: string[] = [];
  const redis = Object.assign(new EventEmitter(), {
    said,
    info: async () => `# Persistence\r\naof_enabled:${aof ? 1 : 0}\r\n`,
    async config() {
      if (fsync === null) throw new Error("ERR unknown command 'CONFIG'");
      return ["appendfsync", fsync];
    },
    async set(key: string) {
      said.push(`SET ${key}`);
    },
    async call(...words: string[]) {
      if (words[0] === "COMMAND") return [waitAof ? ["waitaof", 4] : null];
      said.push(words.join(" "));
      return [local, 0];
    },
  });
  return redis as unknown as Redis & { said: string[] };
}

describe("a decision", () => {
  it.each([
    ["appendfsync always", { aof: true, waitAof: true, fsync: "always" }, true],
    ["no append-only file: there is nothing to wait for", { aof: false, waitAof: true, fsync: "everysec" }, true],
    ["everysec, older than WAITAOF: it cannot be asked", { aof: true, waitAof: false, fsync: "everysec" }, true],
    ["everysec with WAITAOF", { aof: true, waitAof: true, fsync: "everysec" }, false],
    ["CONFIG not allowed, with WAITAOF", { aof: true, waitAof: true, fsync: null }, false],
  ] as const)("%s", async (_, answers, atOnce) => {
    const redis = redisThat(answers);
    expect(await openDisk(redis, () => redis).atOnce()).toBe(atOnce);
  });

  it("is waited for behind a write of the waiting connection's own, for WAITAOF knows no other's", async () => {
    const redis = redisThat({ aof: true, waitAof: true, fsync: "everysec" });
    const waiting = redisThat({ aof: true, waitAof: true, fsync: "everysec" });
    await openDisk(redis, () => waiting).wait();
    expect(waiting.said).toEqual([expect.stringMatching(/^SET /), "WAITAOF 1 0 3000"]);
    expect(redis.said).toEqual([]);
  });

  it("that does not get to disk in time is said not to be there, and is waited for again", async () => {
    const redis = redisThat({ aof: true, waitAof: true, fsync: "everysec", local: 0 });
    await expect(openDisk(redis, () => redis).wait()).rejects.toMatchObject({
      code: "redis_unavailable",
      retryable: true,
    });
  });

  it("asks anew after the connection was lost: the next Redis may be another", async () => {
    const redis = redisThat({ aof: false, waitAof: true, fsync: "everysec" });
    const disk = openDisk(redis, () => redis);
    expect(await disk.atOnce()).toBe(true);
    redis.info = async () => "aof_enabled:1\r\n";
    expect(await disk.atOnce()).toBe(true);
    redis.emit("close");
    expect(await disk.atOnce()).toBe(false);
  });
});
