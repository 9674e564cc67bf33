// Old records go, newest and needed ones stay.

import type { Redis } from "ioredis";
import { describe, expect, it } from "vitest";
import { KEYS } from "../../orchestrator/contract/jobs.js";
import type { FleetStore } from "../../orchestrator/reloads/fleet-store.js";
import { trimRecords } from "../../orchestrator/reloads/trim-records.js";
import { usePrivateRedis } from "../private-redis.js";

const KEPT = 1_000;

let redis: Redis;
usePrivateRedis("trim", (opened) => {
  redis = opened;
});

/** r0 is the oldest. */
async function records(count: number, state = "committed"): Promise<void> {
  const pipeline = redis.pipeline();
  for (let index = 0; index < count; index++) {
    const id = `r${index}`;
    const record = { id, fleet: "f", submissionId: `s${index}`, state };
    pipeline.zadd(KEYS.reloads, index, id).hset(KEYS.reload(id), "record", JSON.stringify(record));
    pipeline.set(KEYS.source(id), "{}").set(KEYS.submission("f", `s${index}`), "{}");
    pipeline.xadd(KEYS.events(id), "*", "name", "state", "payload", "{}").set(KEYS.pushModel(id), "{}");
    for (const key of [KEYS.session, KEYS.sessionRows, KEYS.sessionTaken]) pipeline.hset(key(id), "0", "");
  }
  await pipeline.exec();
}

/** A fleet that holds these contents. */
function storeHolding(committed: string, previous: string): FleetStore {
  const state = { committed: { content: committed }, previous: { content: previous } };
  return { fleets: async () => ["f"], read: async () => ({ state }) } as unknown as FleetStore;
}

const keysOf = (id: string) => [
  KEYS.reload(id),
  KEYS.source(id),
  KEYS.events(id),
  KEYS.submission("f", `s${id.slice(1)}`),
  ...[KEYS.pushModel, KEYS.session, KEYS.sessionRows, KEYS.sessionTaken].map((key) => key(id)),
];

describe("trimming", () => {
  it("removes the oldest beyond those kept, with all that belongs to them", async () => {
    await records(KEPT + 3);
    await trimRecords(redis, storeHolding("none", "none"));
    expect(await redis.zcard(KEYS.reloads)).toBe(KEPT);
    for (const id of ["r0", "r1", "r2"]) expect(await redis.exists(...keysOf(id))).toBe(0);
    expect(await redis.exists(...keysOf("r3"))).toBe(keysOf("r3").length);
  });

  it("leaves what a fleet holds or would go back to, and what has not ended", async () => {
    await records(KEPT + 3);
    await redis.hset(KEYS.reload("r2"), "record", JSON.stringify({ id: "r2", fleet: "f", state: "loading" }));
    await trimRecords(redis, storeHolding("r0", "r1"));
    for (const id of ["r0", "r1", "r2"]) expect(await redis.exists(KEYS.reload(id))).toBe(1);
  });

  it("does nothing while there are no more than those kept", async () => {
    await records(KEPT);
    await trimRecords(redis, storeHolding("none", "none"));
    expect(await redis.zcard(KEYS.reloads)).toBe(KEPT);
  });

  it("takes long queues of them in small bites", async () => {
    await records(KEPT + 200);
    await trimRecords(redis, storeHolding("none", "none"));
    const left = await redis.zcard(KEYS.reloads);
    expect(left).toBeGreaterThan(KEPT);
    expect(left).toBeLessThan(KEPT + 200);
  });
});
