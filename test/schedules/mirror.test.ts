// The schedules' memory Redis against the real one: the same writes come to the same answers and the same contents.

import type { Redis } from "ioredis";
import { describe, expect, it } from "vitest";
import { KEYS } from "../../orchestrator/contract/jobs.js";
import { accessOf } from "../../orchestrator/fleet/fleet-store.js";
import type { FleetWrite } from "../../orchestrator/fleet/fleet-write.js";
import { newFleet } from "../../orchestrator/fleet/state.js";
import { usePrivateRedis } from "../private-redis.js";
import { type Contents, commit, contextOf, emptyContents, renewLease } from "./memory-redis.js";
import { type Random, seededRandom } from "./random.js";

const FLEET = "mirror";
const RANKS = ["0/0", "0/1"] as const;
const FAR_MS = 3_600_000;

let redis: Redis;
usePrivateRedis("mirror", (opened) => {
  redis = opened;
});

/** A write that may rely on what does not stand, and that touches everything a write can touch. */
function randomWrite(random: Random, version: number, redisRunId: string): FleetWrite {
  const some = <Item>(make: (index: number) => Item) =>
    Array.from({ length: random.between(0, 2) }, (_, index) => make(index));
  const id = () => `r${random.between(1, 3)}`;
  return {
    fleet: FLEET,
    version: random.chance(0.8) ? version : version + random.pick([-1, 1]),
    redisRunId: random.chance(0.9) ? redisRunId : "another life",
    leases: random.chance(0.5) ? [] : RANKS.map((rank) => ({ rank, incarnation: random.pick(["a", "a", "a", "b"]) })),
    grant: some(() => ({ rank: random.pick(RANKS), incarnation: random.pick(["a", "b"]), ttlMs: FAR_MS })),
    state: JSON.stringify({ ...newFleet(FLEET), version: version + 1, sequence: random.between(0, 99) }),
    outline: JSON.stringify({ ...newFleet(FLEET), version: version + 1 }),
    reloadIndex: some(() => ({ id: id(), at: random.between(0, 1_000) })),
    set: some(() => ({ key: KEYS.submission(FLEET, id()), value: `"é" ${random.between(0, 9)}` })),
    fields: some(() => ({ key: KEYS.reload(id()), field: random.pick(["record", "request"]), value: "{}" })),
    events: some(() => ({ key: KEYS.events(id()), name: "state", payload: `${random.between(0, 9)}` })),
    messages: [],
  };
}

async function contentsOf(source: Redis): Promise<Record<string, unknown>> {
  const all: Record<string, unknown> = {};
  for (const key of (await source.keys("*")).sort()) {
    const kind = await source.type(key);
    if (key === KEYS.leases(FLEET)) continue;
    if (kind === "string") all[key] = await source.get(key);
    else if (kind === "hash") all[key] = await source.hgetall(key);
    else if (kind === "set") all[key] = await source.smembers(key);
    else if (kind === "zset") all[key] = await source.zrange(key, "0", "-1", "WITHSCORES");
    else all[key] = (await source.xrange(key, "-", "+")).map(([, [, name, , payload]]) => ({ name, payload }));
  }
  return all;
}

/** As the keys that the real one has. */
function keysOf(contents: Contents): Record<string, unknown> {
  const all: Record<string, unknown> = {};
  for (const [fleet, { version, state, outline }] of contents.fleets) {
    all[KEYS.fleet(fleet)] = { version: String(version), state, outline };
    all[KEYS.fleets] = [fleet];
  }
  for (const [key, value] of contents.values) all[key] = value;
  for (const [key, fields] of contents.fields) all[key] = Object.fromEntries(fields);
  for (const [key, events] of contents.streams) all[key] = events;
  const index = [...contents.reloadIndex].sort(([a, first], [b, second]) => first - second || (a < b ? -1 : 1));
  if (index.length > 0) all[KEYS.reloads] = index.flatMap(([id, at]) => [id, String(at)]);
  return Object.fromEntries(Object.entries(all).sort(([a], [b]) => (a < b ? -1 : 1)));
}

describe("the memory Redis of the schedules", () => {
  it.each([1, 2, 3, 4, 5, 6])(
    "takes and refuses the same writes as the script, and holds the same afterwards (%i)",
    async (seed) => {
      const random = seededRandom(seed);
      const real = accessOf(redis);
      const memory = emptyContents();
      const { context } = await real.read(FLEET, []);
      const answers = { taken: 0, refused: 0 };
      for (let step = 0; step < 60; step++) {
        if (random.chance(0.5)) {
          const [rank, incarnation] = [random.pick(RANKS), random.pick(["a", "a", "b"])];
          const ttlMs = random.chance(0.8) ? FAR_MS : -FAR_MS;
          await real.renewLease(FLEET, rank, incarnation, ttlMs);
          renewLease(memory, FLEET, rank, incarnation, context.now + ttlMs);
        }
        const write = randomWrite(random, memory.fleets.get(FLEET)?.version ?? 0, context.redisRunId);
        const taken = commit(memory, write, context.redisRunId, context.now);
        expect(await real.write(write), JSON.stringify(write)).toBe(taken);
        answers[taken ? "taken" : "refused"] += 1;
      }
      expect(await contentsOf(redis)).toEqual(keysOf(memory));
      expect(Math.min(answers.taken, answers.refused)).toBeGreaterThan(5);
    },
  );

  it("reads leases as the script does", async () => {
    const real = accessOf(redis);
    const memory = emptyContents();
    for (const [rank, ttlMs] of [
      ["0/0", FAR_MS],
      ["0/1", -FAR_MS],
    ] as const) {
      await real.renewLease(FLEET, rank, "a", ttlMs);
      const { now } = (await real.read(FLEET, [])).context;
      renewLease(memory, FLEET, rank, "a", now + ttlMs);
    }
    const { context } = await real.read(FLEET, []);
    const mirrored = contextOf(memory, FLEET, context.redisRunId, context.now);
    for (const rank of [...RANKS, "0/2" as const]) {
      for (const incarnation of ["a", "b"]) {
        expect(context.leaseValid(rank, incarnation)).toBe(mirrored.leaseValid(rank, incarnation));
      }
    }
    expect(context.leaseValid("0/0", "a")).toBe(true);
  });

  it("writes the state whole: what is read back is what was written", async () => {
    const real = accessOf(redis);
    const { context } = await real.read(FLEET, []);
    const write = randomWrite(seededRandom(1), 0, context.redisRunId);
    const state = JSON.stringify({ ...newFleet(FLEET), hooks: null, ranks: {}, torn: true, version: 1 });
    expect(await real.write({ ...write, version: 0, redisRunId: context.redisRunId, leases: [], state })).toBe(true);
    expect(JSON.stringify((await real.read(FLEET, [])).state)).toBe(state);
  });
});
