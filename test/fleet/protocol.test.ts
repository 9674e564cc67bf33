// The commit protocol's rules, each as a law over the pure transitions.

import { describe, expect, it } from "vitest";
import { rankKey } from "../../orchestrator/contract/jobs.js";
import { nextStep } from "../../orchestrator/fleet/advance.js";
import { leave, register, reportArena } from "../../orchestrator/fleet/rank-transitions.js";
import {
  beginLoading,
  cancel,
  decide,
  fail,
  handInToken,
  heldBy,
  markEnqueued,
} from "../../orchestrator/fleet/reload-transitions.js";
import { type Hooks, isExpertParallel } from "../../orchestrator/fleet/state.js";
import { testFleet } from "../reloads/fleet.js";

const ERROR = { code: "io_error", message: "no", retryable: false, details: {} } as const;
const stale = expect.objectContaining({ code: "stale_job" });

describe("P1: one reload at a time, each with the next epoch", () => {
  it("a second reload waits until the first has ended, and then has a higher epoch", () => {
    const fleet = testFleet();
    fleet.submit("a");
    fleet.submit("b");
    expect(fleet.active()).toMatchObject({ id: "a", state: "planning", epoch: 1 });
    fleet.apply((draft, { now }) => fail(draft, "a", 1, ERROR, now));
    expect(fleet.active()).toMatchObject({ id: "b", epoch: 2 });
  });

  it("is not admitted before all ranks are there", () => {
    const fleet = testFleet();
    fleet.apply((draft) => leave(draft, "0/1", "1.1"));
    fleet.submit("a");
    expect(fleet.state.active).toBeNull();
    fleet.join(1, "1.2");
    expect(fleet.active().id).toBe("a");
  });

  it("the higher priority goes first, then the earlier", () => {
    const fleet = testFleet();
    fleet.submit("running");
    fleet.submit("early");
    fleet.submit("late");
    fleet.submit("urgent", { priority: 1 });
    const order = [];
    while (fleet.state.active !== null) {
      const { id, epoch } = fleet.active();
      order.push(id);
      fleet.apply((draft, { now }) => fail(draft, id, epoch ?? 0, ERROR, now));
    }
    expect(order).toEqual(["running", "urgent", "early", "late"]);
  });

  it("whoever speaks for an ended reload is told that it is stale", () => {
    const fleet = testFleet();
    fleet.submit("a");
    fleet.apply((draft, { now }) => cancel(draft, "a", now));
    expect(() => fleet.apply((draft, { now }) => beginLoading(draft, "a", 1, "l", now))).toThrow(stale);
    expect(() => fleet.apply((draft, context) => decide(draft, "a", 1, context, true))).toThrow(stale);
  });
});

describe("P3: the decision", () => {
  it("needs a token of every rank", () => {
    const fleet = testFleet();
    fleet.submit("a");
    fleet.load();
    fleet.prepare(0);
    expect(() => fleet.decide()).toThrow(
      expect.objectContaining({ code: "not_prepared", details: expect.objectContaining({ waiting: ["0/1"] }) }),
    );
    fleet.prepare(1);
    fleet.decide();
    expect(fleet.active()).toMatchObject({ state: "committing", liveChanged: true });
  });

  it("does not count the token of an incarnation that is gone", () => {
    const fleet = testFleet();
    fleet.stage("a");
    fleet.join(1, "1.2");
    expect(() => fleet.decide()).toThrow(expect.objectContaining({ code: "not_prepared" }));
    fleet.prepare(1);
    fleet.decide();
    expect(fleet.active().state).toBe("committing");
  });

  it("does not count a rank whose lease has run out", () => {
    const fleet = testFleet();
    fleet.stage("a");
    fleet.expired.add("0.1");
    expect(() => fleet.decide()).toThrow(expect.objectContaining({ code: "not_prepared" }));
  });

  it("refuses a token of a past incarnation", () => {
    const fleet = testFleet();
    fleet.submit("a");
    fleet.load();
    fleet.join(0, "0.2");
    const token = { incarnation: "0.1", epoch: 1, generation: 0, digest: "d", finalizeMs: 0, at: 0 };
    expect(() => fleet.apply((draft) => handInToken(draft, "a", "0/0", token))).toThrow(stale);
  });

  it("makes the fleet unroutable, and neither cancel nor failure nor a newer reload undoes it", () => {
    const fleet = testFleet();
    fleet.commit("old");
    fleet.submit("a");
    fleet.load();
    expect(fleet.state.routable).toBe(true);
    fleet.prepare(0);
    fleet.prepare(1);
    fleet.decide();
    expect(fleet.state.routable).toBe(false);
    expect(() => fleet.apply((draft, { now }) => cancel(draft, "a", now))).toThrow(
      expect.objectContaining({ code: "not_cancellable" }),
    );
    fleet.apply((draft, { now }) => fail(draft, "a", 2, ERROR, now));
    fleet.submit("newest", { coalesce: "latest" });
    expect(fleet.active()).toMatchObject({ id: "a", state: "committing" });
  });
});

describe("P5: publishing", () => {
  it("needs every current incarnation to show the reload live", () => {
    const fleet = testFleet();
    fleet.stage("a");
    fleet.decide();
    fleet.swap(0);
    expect(fleet.state).toMatchObject({ routable: false, committed: null });
    fleet.join(0, "0.2");
    fleet.swap(1);
    expect(fleet.state.committed).toBeNull();
    fleet.swap(0);
    expect(fleet.state).toMatchObject({ routable: true, active: null, committed: { reload: "a", epoch: 1 } });
  });

  it("waits while a lease has run out", () => {
    const fleet = testFleet();
    fleet.stage("a");
    fleet.decide();
    fleet.swap(0);
    fleet.expired.add("0.1");
    fleet.swap(1);
    expect(fleet.state.committed).toBeNull();
    fleet.expired.clear();
    fleet.apply(() => {});
    expect(fleet.state.committed?.reload).toBe("a");
  });

  it("remembers what was committed before, as what a rollback leads to", () => {
    const fleet = testFleet();
    fleet.commit("a");
    fleet.commit("b");
    expect(fleet.state).toMatchObject({ committed: { weightVersion: "b" }, previous: { weightVersion: "a" } });
  });
});

describe("P7: what is next", () => {
  it("follows from the state alone, step by step, until the reload is committed", () => {
    const fleet = testFleet();
    fleet.submit("a");
    expect(nextStep(fleet.state)).toEqual({ kind: "start", reload: "a", epoch: 1 });
    fleet.load();
    expect(nextStep(fleet.state)).toEqual({ kind: "enqueue", reload: "a", epoch: 1, ranks: ["0/0", "0/1"] });
    fleet.apply((draft) => markEnqueued(draft, "a", 1, { "0/0": "0.1", "0/1": "1.1" }));
    expect(nextStep(fleet.state)).toBeNull();
    fleet.prepare(0);
    fleet.prepare(1);
    expect(nextStep(fleet.state)).toEqual({ kind: "decide", reload: "a", epoch: 1 });
    fleet.decide();
    expect(nextStep(fleet.state)).toEqual({ kind: "swap", reload: "a", epoch: 1, ranks: ["0/0", "0/1"] });
    fleet.swap(0);
    expect(nextStep(fleet.state)).toEqual({ kind: "swap", reload: "a", epoch: 1, ranks: ["0/1"] });
    fleet.swap(1);
    expect(nextStep(fleet.state)).toBeNull();
  });

  it("a rank that came anew while loading is sent its jobs anew, and only it", () => {
    const fleet = testFleet();
    fleet.submit("a");
    fleet.load();
    fleet.apply((draft) => markEnqueued(draft, "a", 1, { "0/0": "0.1", "0/1": "1.1" }));
    fleet.join(1, "1.2");
    expect(nextStep(fleet.state)).toEqual({ kind: "enqueue", reload: "a", epoch: 1, ranks: ["0/1"] });
  });

  it("a rank that came anew after the decision is sent no swap: it loads and swaps by itself", () => {
    const fleet = testFleet();
    fleet.submit("a");
    fleet.load();
    fleet.apply((draft) => markEnqueued(draft, "a", 1, { "0/0": "0.1", "0/1": "1.1" }));
    fleet.prepare(0);
    fleet.prepare(1);
    fleet.decide();
    fleet.join(1, "1.2");
    expect(nextStep(fleet.state)).toEqual({ kind: "swap", reload: "a", epoch: 1, ranks: ["0/0"] });
  });

  it("no two enqueueings of a reload have the same number", () => {
    const fleet = testFleet();
    fleet.submit("a");
    fleet.load();
    const numbers = [];
    for (const incarnation of ["1.1", "1.2", "1.3"]) {
      numbers.push(fleet.active().enqueueings);
      fleet.apply((draft) => markEnqueued(draft, "a", 1, { "0/1": incarnation }));
    }
    expect(new Set(numbers).size).toBe(3);
  });
});

describe("P8: joining", () => {
  it("makes the fleet unroutable until the rank shows what is committed", () => {
    const fleet = testFleet();
    fleet.commit("a");
    const held = fleet.state.committed;
    fleet.join(1, "1.2");
    expect(fleet.state).toMatchObject({ routable: false, notRoutableReason: expect.stringContaining("0/1") });
    fleet.join(1, "1.3", { state: "live", generation: 2, held });
    expect(fleet.state.routable).toBe(true);
  });

  it("an arena left odd is not what is committed, whatever it says", () => {
    const fleet = testFleet();
    fleet.commit("a");
    fleet.join(1, "1.2", { state: "torn", generation: 3, held: null });
    expect(fleet.state.routable).toBe(false);
  });

  it("a rank with another topology is refused while others of the fleet live, and taken when none does", () => {
    const fleet = testFleet();
    const alone = { ...registration(), tensorParallelSize: 4 };
    expect(() => fleet.apply((draft, context) => register(draft, alone, context))).toThrow(
      expect.objectContaining({ code: "invalid_request" }),
    );
    fleet.expired.add("0.1").add("1.1");
    fleet.apply((draft, context) => register(draft, alone, context));
    expect(fleet.state.topology).toEqual({ replicas: 1, tensorParallelSize: 4, expertParallel: false });
    expect(Object.keys(fleet.state.ranks)).toEqual(["0/0"]);
  });

  it.each([
    { rank: 2, replica: 0, key: "0/2" },
    { rank: 0, replica: 1, key: "1/0" },
    { rank: -1, replica: 0, key: "0/-1" },
  ] as const)("a rank outside of its fleet's topology is refused, and leaves nothing behind: $key", (place) => {
    const fleet = testFleet();
    const before = structuredClone(fleet.state);
    const outside = { ...registration(), ...place, tensorParallelSize: 2 };
    expect(() => fleet.apply((draft, context) => register(draft, outside, context))).toThrow(
      expect.objectContaining({ code: "invalid_request", message: expect.stringContaining(place.key) }),
    );
    expect(fleet.state).toEqual(before);
  });

  it("a rank that a living worker holds with another arena is refused, and that worker is named; nothing has changed", () => {
    const fleet = testFleet();
    fleet.commit("a");
    const before = structuredClone(fleet.state);
    const other = { ...registration(), tensorParallelSize: 2, lock: "elsewhere", host: "h2" };
    expect(() => fleet.apply((draft, context) => register(draft, other, context))).toThrow(
      expect.objectContaining({
        code: "invalid_request",
        message: expect.stringMatching(/^Worker process 1 on h holds rank 0\/0 .* is alive\. .*--take-over\.$/),
      }),
    );
    expect(fleet.state).toEqual(before);
    expect(fleet.state.routable).toBe(true);
  });

  it.each([
    ["with the same lock, though its host has another name", { host: "h2" }, false],
    ["with another arena, when it is told to take over", { lock: "elsewhere", takeOver: true }, false],
    ["with another arena, when the lease of the one before is over", { lock: "elsewhere" }, true],
  ])("a rank is registered anew %s", (_, more, isOver) => {
    const fleet = testFleet();
    if (isOver) fleet.expired.add("0.1");
    const next = { ...registration(), tensorParallelSize: 2, ...more };
    fleet.apply((draft, context) => register(draft, next, context));
    expect(fleet.state.ranks["0/0"]?.incarnation).toBe("0.9");
    expect(fleet.state.ranks["0/0"]).not.toHaveProperty("takeOver");
  });

  it("whether experts are whole by rank is part of the topology; a document that does not say means they are cut", () => {
    const fleet = testFleet();
    const join = (rank: number, expertParallel: boolean) => () =>
      fleet.apply((draft, context) => {
        const place = {
          ...registration(),
          key: rankKey(0, rank),
          rank,
          incarnation: `${rank}.9`,
          lock: rankKey(0, rank),
        };
        register(draft, { ...place, tensorParallelSize: 2, expertParallel }, context);
      });
    expect(isExpertParallel(fleet.state)).toBe(false);
    expect(join(0, true)).toThrow(/2 ranks, experts cut; rank 0\/0 says 1 replica of 2 ranks, expert parallel/);
    if (fleet.state.topology !== null) delete fleet.state.topology.expertParallel;
    expect(isExpertParallel(fleet.state)).toBe(false);
    expect(join(0, true)).toThrow(/experts cut/);
    expect(join(0, false)).not.toThrow();
    for (const incarnation of ["0.9", "1.1"]) fleet.expired.add(incarnation);
    join(0, true)();
    expect(isExpertParallel(fleet.state)).toBe(true);
    fleet.expired.clear();
    expect(join(1, false)).toThrow(/2 ranks, expert parallel; rank 0\/1 says 1 replica of 2 ranks, experts cut/);
    expect(join(1, true)).not.toThrow();
  });
});

describe("P10: time runs out", () => {
  it("before the decision the reload fails and nothing live has changed", () => {
    const fleet = testFleet();
    fleet.submit("a");
    fleet.load();
    fleet.now += 1_000;
    const record = fleet.active();
    fleet.apply(() => {});
    expect(fleet.state.reloads[record.id]).toMatchObject({
      state: "failed",
      liveChanged: false,
      error: { code: "deadline_exceeded" },
    });
    expect(fleet.state).toMatchObject({ active: null, torn: false });
  });

  it("after it the fleet is torn, accepts submits, and the next commit heals it", () => {
    const fleet = testFleet();
    fleet.commit("old");
    fleet.stage("a");
    fleet.decide();
    fleet.swap(0);
    fleet.now += 1_000;
    fleet.apply(() => {});
    expect(fleet.state.reloads.a).toMatchObject({ state: "failed", liveChanged: true, error: { code: "fleet_torn" } });
    expect(fleet.state).toMatchObject({ torn: true, routable: false });
    fleet.commit("good");
    expect(fleet.state).toMatchObject({ torn: false, routable: true, committed: { reload: "good" } });
  });

  /** Decided, and some ranks too late. */
  function torn(swapped: number[]) {
    const fleet = testFleet();
    fleet.commit("old");
    fleet.submit("a");
    fleet.load();
    for (const rank of [0, 1]) fleet.prepare(rank);
    fleet.decide();
    const held = heldBy(fleet.active());
    const swap = (rank: number) =>
      fleet.apply((draft) =>
        reportArena(draft, rankKey(0, rank), `${rank}.1`, {
          ...{ live: { state: "live", generation: 4, held }, undo: null, swap: null },
        }),
      );
    for (const rank of swapped) swap(rank);
    fleet.now += 1_000;
    fleet.apply(() => {});
    expect(fleet.state.torn).toBe(true);
    return { fleet, swap };
  }

  it("a torn fleet is whole, and routable, once every rank shows what was decided after all", () => {
    const { fleet, swap } = torn([0]);
    swap(1);
    expect(fleet.state).toMatchObject({ torn: false, routable: true, notRoutableReason: null });
    expect(fleet.state).toMatchObject({ committed: { reload: "a" }, previous: { reload: "old" } });
    expect(fleet.state.reloads.a).toMatchObject({ state: "failed", error: { code: "fleet_torn" } });
  });

  it("its engines are resumed then, and it is routable when they are", () => {
    const { fleet, swap } = torn([0]);
    const hooks = { pause: {}, resume: {}, timeoutMs: 1, onFailure: "abort" } as unknown as Hooks;
    const stop = { reload: "a", epoch: 2, hooks, caller: null, pausedAt: 1, failure: null };
    fleet.apply((draft) => {
      draft.engineStop = { ...stop, phase: "paused" };
    });
    swap(1);
    expect(fleet.state).toMatchObject({ torn: false, routable: false, engineStop: { phase: "resuming" } });
  });

  it("it stays torn while every rank shows what was before, for one may still swap; it says so", () => {
    const { fleet } = torn([]);
    expect(fleet.state).toMatchObject({ torn: true, routable: false });
    expect(fleet.state.notRoutableReason).toMatch(/^fleet_torn: every rank shows weight version old/);
  });

  it("and while a rank is not there", () => {
    const { fleet, swap } = torn([0]);
    fleet.expired.add("0.1");
    swap(1);
    expect(fleet.state.torn).toBe(true);
    fleet.expired.clear();
    fleet.apply(() => {});
    expect(fleet.state).toMatchObject({ torn: false, routable: true });
  });

  it("and while another reload is at work, which heals it by its commit", () => {
    const { fleet, swap } = torn([0]);
    fleet.submit("next");
    swap(1);
    expect(fleet.state.torn).toBe(true);
  });
});

describe("in_place", () => {
  it("unroutes before the first write, cannot be cancelled after it, and its failure tears the fleet", () => {
    const fleet = testFleet();
    fleet.commit("old");
    fleet.submit("a", { inPlace: true });
    expect(fleet.state.routable).toBe(true);
    fleet.load();
    expect(fleet.state.routable).toBe(false);
    expect(() => fleet.apply((draft, { now }) => cancel(draft, "a", now))).toThrow(
      expect.objectContaining({ code: "not_cancellable" }),
    );
    fleet.apply((draft, { now }) => fail(draft, "a", 2, ERROR, now));
    expect(fleet.state.reloads.a).toMatchObject({ state: "failed", liveChanged: true, error: { code: "fleet_torn" } });
    expect(fleet.state.torn).toBe(true);
  });
});

describe("coalesce latest", () => {
  it("of fifty queued the newest wins, and each of the others says by whom it was superseded", () => {
    const fleet = testFleet();
    const ids = Array.from({ length: 50 }, (_, n) => `r${n}`);
    const ended: Record<string, string | null> = {};
    for (const id of ids) {
      fleet.submit(id, { coalesce: "latest" });
      for (const record of Object.values(fleet.state.reloads)) {
        if (record.state === "superseded") ended[record.id] ??= record.supersededBy;
      }
    }
    expect(fleet.active().id).toBe("r49");
    expect(Object.entries(ended)).toEqual(ids.slice(0, -1).map((id, n) => [id, `r${n + 1}`]));
  });
});

function registration() {
  const place = { host: "h", pid: 1, device: "cpu", arenaPath: "", controlPath: "", trouble: null };
  const live = { state: "empty" as const, generation: 0, held: null };
  const claim = { lock: "0/0", takeOver: false };
  const fleet = { replicas: 1, expertParallel: false, highestEpoch: 0 };
  return {
    key: "0/0" as const,
    replica: 0,
    rank: 0,
    incarnation: "0.9",
    live,
    undo: null,
    engines: null,
    ...place,
    ...claim,
    ...fleet,
  };
}
