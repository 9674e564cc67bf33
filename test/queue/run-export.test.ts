import type { Redis } from "ioredis";
import { describe, expect, it } from "vitest";
import { rankQueue } from "../../orchestrator/contract/jobs.js";
import { openQueues, type Queues } from "../../orchestrator/queue/queues.js";
import { usePrivateRedis } from "../private-redis.js";

let queues: Queues;
usePrivateRedis("run-export", (redis: Redis) => {
  queues = openQueues(redis, redis, () => {});
});

const PLACE = { fleet: "f", rank: "1/3", incarnation: "a" } as const;
const JOB = { kind: "export", file: "x", retry: { attempts: 1, backoffMs: 0 }, ...PLACE } as const;

describe("an export that does not come names its rank", () => {
  it("when that was lost, with its queue", async () => {
    let failure: unknown = null;
    queues.runExport(JOB, 30_000).catch((error: unknown) => {
      failure = error;
    });
    await expect
      .poll(async () => {
        await queues.removeQueue(rankQueue("f", "1/3", "a"));
        return failure;
      })
      .toMatchObject({
        code: "rank_lost",
        message: "Rank 1/3 of fleet f was lost before it had exported: export it again once it is back.",
        details: { fleet: "f", rank: "1/3" },
      });
  });

  it("when that takes too long", async () => {
    await expect(queues.runExport(JOB, 0)).rejects.toMatchObject({
      code: "deadline_exceeded",
      message: expect.stringContaining("rank 1/3 of fleet f"),
    });
  });
});
