// P13 and what hangs on it: Redis comes back, whole or without what it knew, and the fleet goes on from what its ranks show.

import { describe, expect, it } from "vitest";
import { nextStep } from "../../orchestrator/fleet/advance.js";
import { register } from "../../orchestrator/fleet/rank-transitions.js";
import { markEnqueued } from "../../orchestrator/fleet/reload-transitions.js";
import type { FleetState, LiveArena } from "../../orchestrator/fleet/state.js";
import { newFleet } from "../../orchestrator/fleet/state.js";
import { type TestFleet, testFleet } from "./fleet.js";

const held = (reload: string, epoch: number) => ({
  reload,
  content: reload,
  weightVersion: reload,
  epoch,
  layoutDigest: "layout",
});
const live = (reload: string, epoch: number): LiveArena => ({
  state: "live",
  generation: 2 * epoch,
  held: held(reload, epoch),
});

/** The fleet's document as it was at an earlier write. */
function forget(fleet: TestFleet, to: FleetState): void {
  fleet.state = structuredClone(to);
  fleet.redisRunId = "second";
  fleet.apply(() => {});
}

describe("Redis in another life", () => {
  it("the fleet is not routable, and decides nothing, until every rank has registered again", () => {
    const fleet = testFleet();
    fleet.commit("a");
    fleet.stage("b");
    fleet.redisRunId = "second";
    fleet.apply(() => {});
    expect(fleet.state.routable).toBe(false);
    expect(() => fleet.decide()).toThrow(expect.objectContaining({ code: "not_prepared" }));
    fleet.join(0, "0.1", live("a", 1));
    expect(fleet.state).toMatchObject({ routable: false, notRoutableReason: expect.stringContaining("0/1") });
    fleet.join(1, "1.1", live("a", 1));
    expect(fleet.state.routable).toBe(true);
  });

  it("a token does not outlive the Redis it was given to: its rank is sent its jobs again, and says anew what it has", () => {
    const fleet = testFleet();
    fleet.commit("a");
    fleet.submit("b");
    fleet.load();
    const { id, epoch } = fleet.active();
    fleet.apply((draft) => markEnqueued(draft, id, epoch ?? 0, { "0/0": "0.1", "0/1": "1.1" }));
    for (const rank of [0, 1]) fleet.prepare(rank);
    fleet.redisRunId = "second";
    for (const rank of [0, 1]) fleet.join(rank, `${rank}.1`, live("a", 1));
    expect(() => fleet.decide()).toThrow(expect.objectContaining({ code: "not_prepared" }));
    expect(nextStep(fleet.state)).toMatchObject({ kind: "enqueue", ranks: ["0/0", "0/1"] });
    for (const rank of [0, 1]) fleet.prepare(rank);
    fleet.decide();
    expect(fleet.active()).toMatchObject({ id: "b", state: "committing" });
  });

  it("a reload that a rank shows live was decided, though Redis has forgotten it", () => {
    const fleet = testFleet();
    fleet.submit("a");
    fleet.load();
    const before = fleet.state;
    fleet.prepare(0);
    fleet.prepare(1);
    fleet.decide();
    forget(fleet, before);
    fleet.join(0, "0.1", live("a", 1));
    expect(fleet.active()).toMatchObject({ state: "committing", liveChanged: true });
    expect(fleet.active().times.signalled).not.toBeNull();
    fleet.join(1, "1.1", live("a", 1));
    expect(fleet.state).toMatchObject({ routable: true, committed: { reload: "a" } });
  });

  it("what ranks hold is what is committed, when Redis comes back empty", () => {
    const fleet = testFleet();
    fleet.commit("a");
    fleet.commit("b");
    forget(fleet, newFleet("f"));
    fleet.join(0, "0.1", live("b", 2));
    fleet.join(1, "1.1", live("b", 2));
    expect(fleet.state).toMatchObject({ routable: true, epoch: 2, committed: { reload: "b", epoch: 2 } });
    fleet.submit("c");
    expect(fleet.active().epoch).toBe(3);
  });

  it("an older rank does not take back what a newer one shows", () => {
    const fleet = testFleet();
    forget(fleet, newFleet("f"));
    fleet.join(0, "0.1", live("b", 2));
    fleet.join(1, "1.1", live("a", 1));
    expect(fleet.state).toMatchObject({ routable: false, committed: { reload: "b" } });
  });

  it("an active reload that a rank's later epoch has overtaken is over, and says why", () => {
    const fleet = testFleet();
    fleet.submit("a");
    fleet.load();
    fleet.join(0, "0.1", live("b", 2));
    expect(fleet.state.active).toBeNull();
    expect(fleet.state.reloads.a).toMatchObject({ state: "failed", error: { code: "redis_unavailable" } });
    expect(fleet.state.committed?.reload).toBe("b");
  });

  it("a torn reload is not taken for a decision that was forgotten", () => {
    const fleet = testFleet();
    fleet.commit("a");
    fleet.stage("b");
    fleet.decide();
    fleet.swap(0);
    fleet.now += 1_000;
    fleet.apply(() => {});
    fleet.join(0, "0.2", live("b", 2));
    expect(fleet.state).toMatchObject({ torn: true, committed: { reload: "a" } });
  });

  it("no epoch is given that any ledger has seen", () => {
    const fleet = testFleet(1);
    const place = { host: "h", pid: 1, device: "cpu", arenaPath: "", controlPath: "", lock: "0/0", trouble: null };
    const empty: LiveArena = { state: "empty", generation: 0, held: null };
    const rank = { key: "0/0" as const, replica: 0, rank: 0, incarnation: "0.2", live: empty, undo: null, ...place };
    const alone = { engines: null, replicas: 1, tensorParallelSize: 1, expertParallel: false };
    fleet.apply((draft, context) => register(draft, { ...rank, ...alone, highestEpoch: 7, takeOver: false }, context));
    fleet.submit("a");
    expect(fleet.active().epoch).toBe(8);
  });
});

describe("the signal", () => {
  it("comes with the decision when that is on disk and there are no hooks; until then nothing live may change", () => {
    const fleet = testFleet();
    fleet.stage("a");
    const decidedOnly = structuredClone(fleet.state);
    fleet.decide();
    expect(fleet.active()).toMatchObject({ liveChanged: true, times: { signalled: fleet.now } });
    fleet.state = decidedOnly;
    fleet.decideInMemory();
    expect(fleet.active()).toMatchObject({ state: "committing", liveChanged: false, times: { signalled: null } });
    fleet.now += 1_000;
    fleet.apply(() => {});
    expect(fleet.state).toMatchObject({ torn: false, reloads: { a: { state: "failed", liveChanged: false } } });
  });
});
