// The engines of a rank as pure transitions: who is let in, who is ready, who has gone.

import { describe, expect, it } from "vitest";
import type { EngineLease } from "../../../orchestrator/contract/engines.js";
import {
  admitted,
  aged,
  becameReady,
  connected,
  coresOf,
  disconnected,
  type Engines,
  engineOf,
  inherited,
  namesOf,
  ranAgain,
  reportsOf,
  requireFitting,
  troubled,
} from "../../../worker/engines/leases.js";
import type { Hello } from "../../../worker/engines/messages.js";

const RANK_LINK = 1;
const CORE_LINK = 2;

function hello(more: Partial<Hello> = {}): Hello {
  return {
    ...{ hello: 1, engine: "e-0", role: "rank", name: "vllm", version: "0.26.0", pid: 10, host: "h", url: null },
    ...{ world: 1, rank: 0, data_parallel_rank: 0, state: "starting" },
    ...more,
  };
}

const core = (more: Partial<Hello> = {}) => hello({ role: "core", pid: 11, rank: null, ...more });

function states(engines: Engines): string[] {
  return reportsOf(engines).map(({ state }) => state);
}

function readyEngine(): Engines {
  const withRank = admitted(connected([], RANK_LINK, hello()), ["e-0"]);
  return becameReady(connected(withRank, CORE_LINK, core()), CORE_LINK);
}

const LEASE: EngineLease = {
  ...{ id: "e-0", name: "vllm", version: "0.26.0", host: "h", url: null, pid: 10, state: "ready" },
  ...{ lastStop: null, trouble: null, since: 5 },
};

describe("an engine's life", () => {
  it("waits until it is let in, starts until its core is ready, and is gone when a link ends", () => {
    let engines = connected([], RANK_LINK, hello());
    expect(states(engines)).toEqual(["waiting"]);
    engines = admitted(engines, ["e-0"]);
    expect(states(engines)).toEqual(["starting"]);
    engines = connected(engines, CORE_LINK, core());
    expect(states(engines)).toEqual(["starting"]);
    engines = becameReady(engines, CORE_LINK);
    expect(states(engines)).toEqual(["ready"]);
    expect(states(disconnected(engines, CORE_LINK, 0))).toEqual(["gone"]);
    expect(states(disconnected(engines, RANK_LINK, 0))).toEqual(["gone"]);
  });

  it("that says ready at once computes already: it is in without asking", () => {
    const engines = connected(connected([], CORE_LINK, core({ state: "ready" })), RANK_LINK, hello({ state: "ready" }));
    expect(states(engines)).toEqual(["ready"]);
  });

  it("is not ready by its rank's word, only by its core's", () => {
    const engines = connected(connected([], RANK_LINK, hello({ state: "ready" })), CORE_LINK, core());
    expect(states(becameReady(engines, RANK_LINK))).toEqual(["starting"]);
    expect(states(becameReady(engines, CORE_LINK))).toEqual(["ready"]);
  });

  it("shows for a minute that it has gone, and comes back with the link that was missing", () => {
    const gone = disconnected(readyEngine(), CORE_LINK, 1_000);
    expect(states(aged(gone, 60_999))).toEqual(["gone"]);
    expect(aged(gone, 61_000)).toEqual([]);
    expect(states(connected(gone, 3, core({ state: "ready" })))).toEqual(["ready"]);
  });

  it("keeps its address when only one of its processes knows it", () => {
    const engines = connected(connected([], RANK_LINK, hello({ url: "http://h:1" })), CORE_LINK, core());
    expect(reportsOf(engines)[0]?.url).toBe("http://h:1");
  });

  it("says what it last stood still for, and its trouble until it runs again", () => {
    const inTrouble = troubled(readyEngine(), CORE_LINK, "Ranks differ.");
    expect(reportsOf(inTrouble)[0]).toMatchObject({ trouble: "Ranks differ.", lastStop: null });
    const going = ranAgain(inTrouble, CORE_LINK, { running: 7, stop_ms: 20, still_ms: 15, weight_version: "v7" });
    expect(reportsOf(going)[0]).toMatchObject({
      trouble: null,
      lastStop: { epoch: 7, weightVersion: "v7", stopMs: 20, stillMs: 15 },
    });
  });

  it("is stopped by its core's link, whatever else is known of it; two engines by both", () => {
    const two = connected(readyEngine(), 5, core({ engine: "e-1", pid: 21 }));
    expect(coresOf(two)).toEqual([CORE_LINK, 5]);
    expect(engineOf(two, 5)?.id).toBe("e-1");
    expect(namesOf(two)).toEqual(["vllm 0.26.0 e-0 (process 10 and 11 on h)", "vllm 0.26.0 e-1 (process 21 on h)"]);
  });

  it("a link that nobody has any more changes nothing", () => {
    expect(disconnected(readyEngine(), 99, 0)).toEqual(readyEngine());
  });
});

describe("what the worker before has reported", () => {
  it("stands until the engine has called again, or five seconds are over", () => {
    const expected = inherited([], [LEASE], 0);
    expect(reportsOf(expected)[0]).toMatchObject({ state: "ready", pid: 10 });
    expect(states(aged(expected, 4_999))).toEqual(["ready"]);
    expect(states(aged(expected, 5_000))).toEqual(["gone"]);
    const half = connected(expected, RANK_LINK, hello({ state: "ready" }));
    expect(states(half)).toEqual(["ready"]);
    const whole = connected(half, CORE_LINK, core({ state: "ready" }));
    expect(states(aged(whole, 9_000))).toEqual(["ready"]);
  });

  it("an engine that is still starting needs only its rank's link, and is in already", () => {
    const expected = inherited([], [{ ...LEASE, state: "starting" }], 0);
    const back = connected(expected, RANK_LINK, hello());
    expect(states(aged(back, 9_000))).toEqual(["starting"]);
  });

  it("says nothing of those that have called before it was read, have gone, or only wait", () => {
    const called = connected([], RANK_LINK, hello({ state: "ready" }));
    expect(inherited(called, [LEASE], 0)).toEqual(called);
    expect(
      inherited(
        [],
        [
          { ...LEASE, state: "gone" },
          { ...LEASE, id: "e-1", state: "waiting" },
        ],
        0,
      ),
    ).toEqual([]);
  });
});

describe("an engine that does not fit is refused", () => {
  const place = { rank: 0, tensorParallelSize: 1 };
  const refusal = (more: Partial<Hello>, engines: Engines = []) => {
    try {
      requireFitting(engines, hello(more), place);
      return null;
    } catch (error) {
      return (error as Error).message;
    }
  };

  it("with another number of ranks, at another rank's directory, or of another version of the link", () => {
    expect(refusal({})).toBeNull();
    expect(refusal({ world: 2 })).toContain("The engine has 2 ranks and each of the fleet's replicas 1");
    expect(refusal({ rank: 3 })).toContain("Rank 3 of the engine has called rank 0");
    expect(refusal({ role: "core", rank: 3 })).toBeNull();
    expect(refusal({ hello: 2 })).toContain("version 2 of the link, this worker version 1");
  });

  it("when another process has its name; the same process may call again", () => {
    expect(refusal({ pid: 12 }, readyEngine())).toContain("Process 10 is attached as e-0");
    expect(refusal({ pid: 10 }, readyEngine())).toBeNull();
  });
});
