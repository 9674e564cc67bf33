// Who gets a rank when two workers want it (P9), over the schedules' memory Redis.

import { describe, expect, it } from "vitest";
import { createFleetStore } from "../../orchestrator/fleet/fleet-store.js";
import { beat, joinAtStart } from "../../worker/heartbeat.js";
import type { Rank } from "../../worker/rank.js";
import { commit, contextOf, emptyContents, readFleet, renewLease } from "../schedules/memory-redis.js";

const FLEET = "f";

function openFleet() {
  const contents = emptyContents();
  const clock = { now: 1_000 };
  const store = createFleetStore({
    read: async (fleet, keys, field) => ({
      state: readFleet(contents, fleet, field),
      context: contextOf(contents, fleet, "1", clock.now),
      stored: keys.map(() => null),
    }),
    write: async (write) => commit(contents, write, "1", clock.now),
    fleets: async () => [FLEET],
    remove: async () => {},
    renewLease: async (fleet, rank, incarnation, ttlMs) =>
      renewLease(contents, fleet, rank, incarnation, clock.now + ttlMs),
  });
  const worker = (incarnation: string, lock: string) =>
    ({
      ...{ fleet: FLEET, key: "0/0", replica: 0, rank: 0, incarnation, host: "h", lock, device: "cpu", version: "0" },
      ...{ replicas: 1, tensorParallelSize: 1, expertParallel: false, core: { threads: 1 }, store, pushes: {} },
      arena: {
        livePath: `/${lock}`,
        controlPath: "",
        liveState: () => ({ state: "empty", generation: 0, held: null }),
      },
      staging: { ledger: () => ({ highestEpoch: 0, staging: { kind: "closed" } }) },
      engines: { leases: () => null },
      catchingUp: null,
      showRegistered: () => {},
    }) as unknown as Rank;
  /** `meanwhile` happens at each wait. Resolves with how long it waited. */
  const join = async (rank: Rank, takeOver = false, meanwhile = async () => {}) => {
    const began = clock.now;
    await joinAtStart(rank, takeOver, async (ms) => {
      clock.now += ms;
      await meanwhile();
    });
    return clock.now - began;
  };
  const registered = () => {
    const context = contextOf(contents, FLEET, "1", clock.now);
    const incarnation = readFleet(contents, FLEET)?.ranks["0/0"]?.incarnation ?? "";
    return { incarnation, leaseValid: context.leaseValid("0/0", incarnation) };
  };
  return { clock, worker, join, registered };
}

describe("a worker that finds its rank registered", () => {
  it("with another arena by a worker that lives, says so after a lease's time and has not touched its lease", async () => {
    const { clock, worker, join, registered } = openFleet();
    const living = worker("a", "one");
    await join(living);
    const began = clock.now;
    await expect(join(worker("b", "other"), false, () => beat(living))).rejects.toMatchObject({
      code: "invalid_request",
      message: expect.stringMatching(/^Worker process \d+ on h holds rank 0\/0 of fleet f, with its arena at \/one,/),
    });
    expect(clock.now - began).toBeGreaterThan(5_000);
    expect(clock.now - began).toBeLessThan(6_000);
    expect(registered()).toEqual({ incarnation: "a", leaseValid: true });
  });

  it("with another arena by a worker that has died, waits until its lease is over", async () => {
    const { worker, join, registered } = openFleet();
    await join(worker("a", "one"));
    expect(await join(worker("b", "other"))).toBeLessThan(6_000);
    expect(registered()).toEqual({ incarnation: "b", leaseValid: true });
  });

  it.each([
    ["with its own lock", "one", false],
    ["with another arena, told to take over", "other", true],
  ])(
    "%s, does not wait; the one before must end, and its late sign of life changes nothing",
    async (_, lock, takeOver) => {
      const { worker, join, registered } = openFleet();
      const before = worker("a", "one");
      await join(before);
      expect(await join(worker("b", lock), takeOver)).toBe(0);
      await before.store.renewLease(FLEET, "0/0", "a", 5_000);
      expect(registered()).toEqual({ incarnation: "b", leaseValid: true });
      await expect(beat(before)).rejects.toMatchObject({ code: "rank_lost" });
    },
  );
});
