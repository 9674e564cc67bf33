// P14: what a fleet with attached engines decides, and what it refuses.

import { describe, expect, it } from "vitest";
import type { EngineLease, EngineReport } from "../../orchestrator/contract/engines.js";
import { rankKey } from "../../orchestrator/contract/jobs.js";
import { nextStep } from "../../orchestrator/fleet/advance.js";
import { refuseUnderEngines, reportEngines, whyNotAttach } from "../../orchestrator/fleet/engine-leases.js";
import { register } from "../../orchestrator/fleet/rank-transitions.js";
import { beginLoading, fail, markEnqueued } from "../../orchestrator/fleet/reload-transitions.js";
import type { RankState } from "../../orchestrator/fleet/state.js";
import { pendingReason, viewAttachedEngines } from "../../orchestrator/reloads/view.js";
import { LAYOUT, type TestFleet, testFleet } from "../reloads/fleet.js";

function report(state: EngineReport["state"], more: Partial<EngineReport> = {}): EngineReport {
  const about = { id: "e-0", name: "vllm", version: "0.26.0", host: "h", url: null, pid: 10 };
  return { ...about, state, lastStop: null, trouble: null, ...more };
}

/** The first rank's worker says which engines it has; the answer is what was recorded. */
function tell(fleet: TestFleet, ...reports: EngineReport[]): string[] {
  const incarnation = fleet.state.ranks["0/0"]?.incarnation ?? "";
  return fleet
    .apply((draft, { now }) => reportEngines(draft, "0/0", incarnation, reports, now))
    .map(({ state }) => state);
}

function committed(): TestFleet {
  const fleet = testFleet();
  fleet.commit("a");
  return fleet;
}

function prepared(fleet: TestFleet, id = "b"): TestFleet {
  fleet.submit(id);
  fleet.load();
  enqueued(fleet);
  fleet.prepare(0);
  fleet.prepare(1);
  return fleet;
}

/** Its jobs have been sent: what is next is no longer to send them. */
function enqueued(fleet: TestFleet): void {
  const { id, epoch } = fleet.active();
  const incarnations = Object.values(fleet.state.ranks).map(({ key, incarnation }) => [key, incarnation]);
  fleet.apply((draft) => markEnqueued(draft, id, epoch ?? 0, Object.fromEntries(incarnations)));
}

const firstRank = (fleet: TestFleet) => fleet.state.ranks["0/0"] as RankState;
const attached = expect.objectContaining({ code: "engine_attached" });

describe("an engine that waits is let in", () => {
  it("when its rank holds what is committed, and at no other time", () => {
    const fleet = testFleet();
    expect(tell(fleet, report("waiting"))).toEqual(["waiting"]);
    expect(whyNotAttach(fleet.state, firstRank(fleet))).toBe("the fleet holds no weights yet");
    fleet.commit("a");
    expect(tell(fleet, report("waiting"))).toEqual(["starting"]);
  });

  it("not while a reload is committing, and after it", () => {
    const fleet = prepared(committed());
    fleet.decide();
    expect(tell(fleet, report("waiting"))).toEqual(["waiting"]);
    fleet.swap(0);
    fleet.swap(1);
    expect(tell(fleet, report("waiting"))).toEqual(["starting"]);
  });

  it("not while a reload writes in place, or brings another layout; while it only loads it is", () => {
    const inPlace = committed();
    inPlace.submit("b", { inPlace: true });
    inPlace.load();
    expect(tell(inPlace, report("waiting"))).toEqual(["waiting"]);
    const other = committed();
    other.submit("b");
    other.apply((draft, { now }) => beginLoading(draft, "b", 2, "another", now));
    expect(tell(other, report("waiting"))).toEqual(["waiting"]);
    const same = committed();
    same.submit("b");
    same.load();
    expect(tell(same, report("waiting"))).toEqual(["starting"]);
  });

  it("not by a torn fleet, nor where the rank has lost its weights", () => {
    const fleet = prepared(committed());
    fleet.decide();
    fleet.swap(0);
    fleet.now += 10_000;
    fleet.apply(() => {});
    expect(fleet.state.torn).toBe(true);
    expect(tell(fleet, report("waiting"))).toEqual(["waiting"]);
    const lost = committed();
    lost.join(0, "0.2");
    expect(tell(lost, report("waiting"))).toEqual(["waiting"]);
    expect(whyNotAttach(lost.state, firstRank(lost))).toContain("rank 0/0 does not hold weight version a");
  });

  it("not by one rank while another of its replica has lost its weights, which would wait for a commit that waits for the engine", () => {
    const fleet = committed();
    fleet.join(1, "1.2");
    expect(tell(fleet, report("waiting"))).toEqual(["waiting"]);
    expect(whyNotAttach(fleet.state, firstRank(fleet))).toContain("rank 0/1 does not hold weight version a");
  });

  it("and nothing waits for one that waits", () => {
    const fleet = testFleet();
    tell(fleet, report("waiting"));
    fleet.commit("a");
    expect(fleet.state.committed?.weightVersion).toBe("a");
  });
});

describe("the engines of a rank", () => {
  const joinAgain = (fleet: TestFleet, incarnation: string, engines: EngineLease[] | null) => {
    const { host, pid, device, arenaPath, controlPath, live } = firstRank(fleet);
    const place = { key: rankKey(0, 0), replica: 0, rank: 0, host, pid, device, arenaPath, controlPath, live };
    const topology = { replicas: 1, tensorParallelSize: 2, expertParallel: false };
    const rest = { incarnation, engines, lock: "0/0", undo: null, trouble: null, highestEpoch: 1, takeOver: false };
    fleet.apply((draft, context) => register(draft, { ...place, ...topology, ...rest }, context));
    return firstRank(fleet).engines?.map(({ state }) => state);
  };

  it("are those that the worker before has told, until its successor has told any", () => {
    const fleet = committed();
    tell(fleet, report("ready"));
    expect(joinAgain(fleet, "0.2", null)).toEqual(["ready"]);
  });

  it("are those that its worker has told last, also where Redis comes back with the worker before", () => {
    const fleet = committed();
    tell(fleet, report("starting"));
    const ready = { ...report("ready"), state: "ready" as const, since: 0 };
    expect(joinAgain(fleet, "0.2", [ready])).toEqual(["ready"]);
    expect(joinAgain(fleet, "0.2", [])).toEqual([]);
  });
});

describe("while an engine starts nothing is decided", () => {
  it("until it is ready", () => {
    const fleet = committed();
    tell(fleet, report("starting"));
    prepared(fleet);
    expect(nextStep(fleet.state)).toBeNull();
    fleet.decide();
    expect(fleet.active().state).toBe("finalizing");
    expect(pendingReason(fleet.active(), fleet.state, fleet.context)).toBe(
      "waiting for engines to have started: vllm 0.26.0 e-0 on h",
    );
    tell(fleet, report("ready"));
    expect(nextStep(fleet.state)).toMatchObject({ kind: "decide" });
    fleet.decide();
    expect(fleet.active().state).toBe("committing");
  });

  it.each(["gone", "waiting"] as const)("or is %s", (state) => {
    const fleet = committed();
    tell(fleet, report("starting"));
    prepared(fleet);
    tell(fleet, report(state === "waiting" ? "gone" : state));
    expect(nextStep(fleet.state)).toMatchObject({ kind: "decide" });
  });

  it("and at the deadline the reload fails, with the engine's name, and has changed nothing", () => {
    const fleet = committed();
    tell(fleet, report("starting"));
    prepared(fleet);
    const record = fleet.active();
    fleet.now += 1_000;
    const ended = fleet.apply((draft) => draft.reloads[record.id]);
    expect(ended).toMatchObject({ state: "failed", liveChanged: false, error: { code: "engine_starting" } });
    expect(ended?.error?.message).toContain("vllm 0.26.0 e-0 on h");
    expect(fleet.state.committed?.weightVersion).toBe("a");
  });

  it("a deadline that passes before ranks are prepared is theirs, not the engine's", () => {
    const fleet = committed();
    tell(fleet, report("starting"));
    fleet.submit("b");
    fleet.load();
    fleet.now += 1_000;
    const ended = fleet.apply((draft) => draft.reloads.b);
    expect(ended?.error?.code).toBe("deadline_exceeded");
  });

  it("on a drained replica it holds nobody up", () => {
    const fleet = testFleet(1, 2);
    fleet.apply((draft) => {
      draft.drained[1] = "out";
    });
    fleet.commit("a");
    fleet.apply((draft, { now }) => reportEngines(draft, "1/0", "1/0.1", [report("starting")], now));
    fleet.submit("b");
    fleet.load();
    enqueued(fleet);
    fleet.prepare(0);
    expect(nextStep(fleet.state)).toMatchObject({ kind: "decide" });
  });
});

describe("under an attached engine", () => {
  it.each(["starting", "ready"] as const)("that is %s another layout and in_place are refused", (state) => {
    const fleet = committed();
    tell(fleet, report(state));
    fleet.submit("b");
    const begin = (layout: string) => fleet.apply((draft, { now }) => beginLoading(draft, "b", 2, layout, now));
    expect(() => begin("another")).toThrow(attached);
    expect(fleet.active().state).toBe("planning");
    begin(LAYOUT);
    fleet.apply((draft, { now }) =>
      fail(draft, "b", 2, { code: "io_error", message: "", retryable: false, details: {} }, now),
    );
    fleet.submit("c", { inPlace: true });
    expect(() => fleet.load()).toThrow(attached);
  });

  it.each(["waiting", "gone"] as const)("one that is %s refuses nothing", (state) => {
    const fleet = testFleet();
    tell(fleet, report(state));
    fleet.commit("a");
    expect(() => refuseUnderEngines(fleet.state, { inPlace: true }, "another")).not.toThrow();
  });
});

describe("what a rank says of its engines", () => {
  it("counts from when it was said first, and is of the registered incarnation only", () => {
    const fleet = committed();
    tell(fleet, report("starting"));
    fleet.now += 100;
    tell(fleet, report("starting", { trouble: "No." }));
    expect(firstRank(fleet).engines).toMatchObject([{ state: "starting", since: 1_000, trouble: "No." }]);
    tell(fleet, report("ready"));
    expect(firstRank(fleet).engines).toMatchObject([{ state: "ready", since: 1_100 }]);
    const late = () => fleet.apply((draft, { now }) => reportEngines(draft, "0/0", "0.0", [], now));
    expect(late).toThrow(expect.objectContaining({ code: "stale_job" }));
  });

  it("stands when its worker's successor registers, until that one has looked", () => {
    const fleet = committed();
    tell(fleet, report("ready"));
    fleet.join(0, "0.2", firstRank(fleet).live);
    expect(firstRank(fleet).engines).toMatchObject([{ id: "e-0", state: "ready" }]);
    tell(fleet);
    expect(firstRank(fleet).engines).toEqual([]);
  });
});

describe("the view has each engine once", () => {
  it("in the state that keeps it from serving, with its last stop and its trouble", () => {
    const fleet = committed();
    const stop = (epoch: number, stopMs: number) => ({ epoch, weightVersion: `v${epoch}`, stopMs, stillMs: 1.234 });
    const say = (rank: number, ...reports: EngineReport[]) =>
      fleet.apply((draft, { now }) => reportEngines(draft, rankKey(0, rank), `${rank}.1`, reports, now));
    say(0, report("ready", { lastStop: stop(3, 20) }), report("ready", { id: "e-1", pid: 30 }));
    fleet.now += 500;
    say(1, report("starting", { pid: 11, lastStop: stop(2, 99), trouble: "Ranks differ." }));
    expect(viewAttachedEngines(fleet.state)).toEqual([
      {
        ...{ id: "e-0", name: "vllm", version: "0.26.0", state: "starting", host: "h", url: null },
        ranks: [
          { replica: 0, rank: 0, pid: 10 },
          { replica: 0, rank: 1, pid: 11 },
        ],
        since: new Date(1_500).toISOString(),
        last_stop: { epoch: 3, weight_version: "v3", stop_ms: 20, still_ms: 1.23 },
        trouble: "Ranks differ.",
      },
      expect.objectContaining({ id: "e-1", state: "ready", last_stop: null, trouble: null }),
    ]);
  });

  it("and none where ranks of an earlier release do not say", () => {
    expect(viewAttachedEngines(testFleet().state)).toEqual([]);
  });
});
