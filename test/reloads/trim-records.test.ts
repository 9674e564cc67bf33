// Old records go, newest and needed ones stay.

import type { Redis } from "ioredis";
import { describe, expect, it } from "vitest";
import { KEYS } from "../../orchestrator/contract/jobs.js";
import { type FleetStore, openFleetStore } from "../../orchestrator/fleet/fleet-store.js";
import type { FleetState } from "../../orchestrator/fleet/state.js";
import { trimFleets, trimRecords } from "../../orchestrator/reloads/trim-records.js";
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
    pipeline.rpush(KEYS.ticks(id), "0-1");
    pipeline.set(KEYS.source(id), "{}").set(KEYS.submission("f", `s${index}`), "{}");
    pipeline.xadd(KEYS.events(id), "*", "name", "state", "payload", "{}").set(KEYS.pushModel(id), "{}");
    for (const key of [KEYS.session, KEYS.sessionRows, KEYS.sessionTaken]) pipeline.hset(key(id), "0", "");
  }
  await pipeline.exec();
}

/** A fleet that holds these contents. */
function storeHolding(committed: string, previous: string): FleetStore {
  const state = { committed: { content: committed }, previous: { content: previous }, reloads: {} };
  return { fleets: async () => ["f"], read: async () => ({ state }) } as unknown as FleetStore;
}

const keysOf = (id: string) => [
  KEYS.reload(id),
  KEYS.source(id),
  KEYS.events(id),
  KEYS.ticks(id),
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

  it("walks past any number of the oldest that must stay", async () => {
    await records(KEPT + 500);
    const pipeline = redis.pipeline();
    for (let index = 0; index < 300; index++) {
      pipeline.hset(
        KEYS.reload(`r${index}`),
        "record",
        JSON.stringify({ fleet: "f", submissionId: "", state: "queued" }),
      );
    }
    await pipeline.exec();
    for (let sweep = 0; sweep < 10; sweep++) await trimRecords(redis, storeHolding("none", "none"));
    expect(await redis.zcard(KEYS.reloads)).toBe(KEPT + 300);
    expect(await redis.exists(KEYS.reload("r299"), KEYS.reload("r500"))).toBe(2);
    expect(await redis.exists(KEYS.reload("r300"), KEYS.reload("r499"))).toBe(0);
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

describe("trimming of fleets", () => {
  const names = async () => (await redis.smembers(KEYS.fleets)).sort();

  it("removes one that no rank, record, hook or weights are left of, and no other", async () => {
    const store = openFleetStore(redis);
    const write = (fleet: string, change: (draft: FleetState) => void) => store.transact(fleet, change);
    const held = { reload: "r", content: "r", weightVersion: "1", epoch: 1, layoutDigest: "" };
    const hook = { urls: ["http://engine/pause"], method: "POST", body: null };
    await write("mistyped", (draft) => void draft.sequence++);
    await write("holds-weights", (draft) => void Object.assign(draft, { committed: held }));
    await write("has-hooks", (draft) => {
      draft.hooks = { pause: hook, resume: hook, timeoutMs: 1, onFailure: "abort" };
    });
    await write("f", (draft) => void draft.sequence++);
    await records(1);
    await trimFleets(redis, store);
    expect(await names()).toEqual(["f", "has-hooks", "holds-weights"]);
    expect(await redis.exists(KEYS.fleet("mistyped"))).toBe(0);
  });

  it("leaves one that changed since it was looked at, and begins again with one that comes back", async () => {
    const store = openFleetStore(redis);
    await store.transact("f", (draft) => void draft.sequence++);
    await store.remove("f", 7);
    expect(await names()).toEqual(["f"]);
    await store.remove("f", 1);
    expect(await names()).toEqual([]);
    const { state } = await store.transact("f", (draft) => void draft.sequence++);
    expect(state).toMatchObject({ version: 1, sequence: 1 });
  });
});
