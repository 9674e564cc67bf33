// What a transaction or a pipeline could not do reaches whoever sent it, and a Redis that has lost its scripts is given them again.

import { Queue } from "bullmq";
import type { Redis } from "ioredis";
import { afterEach, describe, expect, it } from "vitest";
import { rankQueue } from "../../orchestrator/contract/jobs.js";
import { openQueues, type Queues } from "../../orchestrator/queue/queues.js";
import { usePrivateRedis } from "../private-redis.js";

let redis: Redis;
usePrivateRedis("transactions", (opened) => {
  redis = opened;
});

const RETRY = { attempts: 3, backoffMs: 50 };
const RANK = { rank: "0/0", incarnation: "i" } as const;
const PUSH = { fleet: "f", reload: "r", epoch: 1, retry: RETRY };

describe("a transaction", () => {
  it("in which one command fails is an error, though Redis has done the others", async () => {
    await redis.set("text", "no list");
    await expect(redis.multi().set("a", "1").rpush("text", "x").exec()).rejects.toThrow("WRONGTYPE");
  });

  it("that Redis gives up says what for", async () => {
    const refused = redis.multi();
    (refused as unknown as { call(...words: string[]): void }).call("NOSUCHCOMMAND");
    await expect(refused.exec()).rejects.toThrow(/unknown command/);
  });

  it("in which nothing fails has its replies", async () => {
    expect(await redis.multi().set("a", "1").get("a").exec()).toEqual([
      [null, "OK"],
      [null, "1"],
    ]);
  });

  it("runs its scripts on a Redis that has lost them", async () => {
    redis.defineCommand("testSet", { numberOfKeys: 1, lua: "return redis.call('SET', KEYS[1], ARGV[1])" });
    const send = (value: string) =>
      (redis.multi() as unknown as SetBatch).testSet("k", value).testSet("l", value).exec();
    for (const value of ["1", "2", "3"]) {
      await send(value);
      expect(await redis.mget("k", "l")).toEqual([value, value]);
      await redis.script("FLUSH");
    }
  });
});

interface SetBatch {
  testSet(key: string, value: string): SetBatch;
  exec(): Promise<unknown>;
}

describe("a pipeline", () => {
  it("in which one command fails is an error", async () => {
    await redis.set("text", "no list");
    await expect(redis.pipeline().rpush("text", "x").set("a", "1").exec()).rejects.toThrow("WRONGTYPE");
  });

  it("of a duplicated connection is looked at too", async () => {
    const other = redis.duplicate();
    await other.set("text", "no list");
    await expect(other.pipeline().rpush("text", "x").exec()).rejects.toThrow("WRONGTYPE");
    other.disconnect();
  });
});

describe("jobs", () => {
  const opened: Queues[] = [];
  afterEach(async () => {
    await redis.config("SET", "maxmemory", "0");
    for (const queues of opened.splice(0)) await queues.close();
  });
  const open = () => {
    const queues = openQueues(redis, redis, () => {});
    opened.push(queues);
    return queues;
  };
  const waiting = async () => {
    const queue = new Queue(rankQueue("f", "0/0", "i"), { connection: redis, prefix: "{layercast}" });
    const counts = await queue.getJobCounts();
    await queue.close();
    return counts;
  };

  it.each([
    ["buckets", (queues: Queues) => queues.addBuckets(PUSH, RANK, [{ sequence: 0, delivery: 0 }])],
    ["swaps", (queues: Queues) => queues.addSwaps(PUSH, [RANK])],
    [
      "a flow",
      (queues: Queues) => queues.addFlow({ ...PUSH, ranks: [{ ...RANK, layerJobs: [[0]] }], enqueueing: 0 }, true),
    ],
    [
      "a part of one",
      (queues: Queues) => queues.addFlow({ ...PUSH, ranks: [{ ...RANK, layerJobs: [] }], enqueueing: 1 }, false),
    ],
  ])("(%s) are in the queue though Redis lost its scripts, or it is an error", async (_what, add) => {
    const queues = open();
    await add(queues); // this connection has sent every script
    await redis.flushall();
    await redis.script("FLUSH");
    await add(queues);
    expect((await waiting()).waiting).toBe(1);

    await redis.flushall();
    await redis.config("SET", "maxmemory", "1");
    await expect(add(queues)).rejects.toThrow(/^OOM /);
  });
});
