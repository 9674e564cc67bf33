// A plan comes back from Redis as it went there, and takes little room.

import type { Redis } from "ioredis";
import { describe, expect, it } from "vitest";
import { KEYS } from "../../orchestrator/contract/jobs.js";
import { PLAN_FORMAT } from "../../orchestrator/contract/plan.js";
import { openFleetStore } from "../../orchestrator/fleet/fleet-store.js";
import { openPlanStore, type ReloadPlan } from "../../orchestrator/fleet/plan-store.js";
import { planReload } from "../../orchestrator/planner/plan-reload.js";
import { trimLayouts } from "../../orchestrator/reloads/trim-layouts.js";
import { LLAMA, shapesOf, synthesize } from "../planner/synthetic-checkpoint.js";
import { usePrivateRedis } from "../private-redis.js";

let redis: Redis;
usePrivateRedis("plans", (opened) => {
  redis = opened;
});

const fields = { ...LLAMA, num_hidden_layers: 50 };
const { table, config } = synthesize(fields, shapesOf(fields), { fill: false });
const ranks = { tensorParallelSize: 2, expertParallel: false };
const { layout, layoutDigest, mappingDigest, source, sourceDigest } = planReload({
  ...{ table, config, ...ranks },
  ...{ scheme: "fp8-channel", ignore: [], dtype: "auto" },
});
const plan: ReloadPlan = {
  ...{ layout, layoutDigest, mappingDigest, source, sourceDigest },
  ...{ layerJobs: [[0], [1, 2]], allowNonFinite: false, stagingPlace: "auto", retry: { attempts: 1, backoffMs: 0 } },
  ...{ kind: "safetensors", base: null, limits: { maxBufferBytes: null, warnBufferBytes: 0 }, retainExport: false },
  warnings: [],
};

describe("the plan store", () => {
  it("gives another process what was saved", async () => {
    await openPlanStore(redis).save("r1", plan);
    const other = openPlanStore(redis);
    expect(await other.load("r1")).toEqual(plan);
    expect(await other.layout(layoutDigest)).toEqual(layout);
    expect(await other.mapping(mappingDigest)).toEqual(layout);
    expect([await other.layout("unknown"), await other.mapping("unknown")]).toEqual([null, null]);
  });

  it("keeps a layout once for all its reloads, for as long as any may name it", async () => {
    const store = openPlanStore(redis);
    await store.save("r1", plan);
    const first = await redis.getBuffer(KEYS.mapping(mappingDigest));
    await store.save("r2", plan);
    expect(await redis.getBuffer(KEYS.mapping(mappingDigest))).toEqual(first);
    await redis.flushall(); // another life: what this process knows is not what Redis has
    await store.save("r3", plan);
    expect(await openPlanStore(redis).load("r3")).toEqual(plan);
  });

  it("takes a tenth of the JSON's room", async () => {
    await openPlanStore(redis).save("r1", plan);
    const stored = await Promise.all([redis.strlen(KEYS.mapping(mappingDigest)), redis.strlen(KEYS.source("r1"))]);
    const bytes = stored.reduce((sum, size) => sum + size, 0);
    expect(bytes).toBeLessThan((JSON.stringify(layout).length + JSON.stringify(source).length) / 10);
    expect(await redis.hget(KEYS.reload("r1"), "plan")).not.toContain("model.layers");
  });

  it("gives a layout that no reload names an hour, which a reload that names it again takes back", async () => {
    const store = openPlanStore(redis);
    const keys = [KEYS.mapping(plan.mappingDigest), KEYS.layout(layoutDigest)];
    const ends = () => Promise.all(keys.map((key) => redis.ttl(key)));
    const fleets = openFleetStore(redis);
    await store.save("r1", plan);
    await redis.zadd(KEYS.reloads, 1, "r1");
    await trimLayouts(redis, fleets);
    expect(await ends()).toEqual([-1, -1]);
    await redis.zrem(KEYS.reloads, "r1");
    await trimLayouts(redis, fleets);
    for (const end of await ends()) expect(end).toBeGreaterThan(3_000);
    await openPlanStore(redis).save("r2", plan);
    expect(await ends()).toEqual([-1, -1]);
  });

  it("writes a layout again that went while the plan was saved", async () => {
    await openPlanStore(redis).save("r1", plan);
    const going = Object.create(redis, { exists: { value: goneAfterFirstLook(redis) } }) as Redis;
    await openPlanStore(going).save("r2", plan);
    expect(await openPlanStore(redis).load("r2")).toEqual(plan);
  });

  it("does not read a plan that another release stored in another format, and says to submit the checkpoint again", async () => {
    await openPlanStore(redis).save("r1", plan);
    const { format, ...earlier } = JSON.parse((await redis.hget(KEYS.reload("r1"), "plan")) ?? "{}");
    expect(format).toBe(PLAN_FORMAT);
    for (const other of [earlier, { ...earlier, format: PLAN_FORMAT + 1 }]) {
      await redis.hset(KEYS.reload("r1"), "plan", JSON.stringify(other));
      await expect(openPlanStore(redis).load("r1")).rejects.toMatchObject({
        code: "source_gone",
        message: expect.stringMatching(/another release of Layercast .* Submit its checkpoint again/),
      });
    }
    await expect(openPlanStore(redis).load("r2")).rejects.toMatchObject({ code: "source_gone" });
  });
});

/** EXISTS of a Redis from which the key is removed right after the first answer. */
function goneAfterFirstLook(redis: Redis) {
  let looks = 0;
  return async (key: string) => {
    const answer = await redis.exists(key);
    looks += 1;
    if (looks === 1) await redis.del(key);
    return answer;
  };
}
