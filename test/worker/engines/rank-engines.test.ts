// A rank's engines put together, over links that are lists and a fleet that is a value: who is answered when, and what is told.

import { pino } from "pino";
import { beforeEach, describe, expect, it } from "vitest";
import type { FileLock, NativeCore } from "../../../native/native.js";
import type { FleetStore } from "../../../orchestrator/fleet/fleet-store.js";
import { register } from "../../../orchestrator/fleet/rank-transitions.js";
import type { FleetState } from "../../../orchestrator/fleet/state.js";
import type { LinkServerOptions } from "../../../worker/engines/link-server.js";
import type { Hello, WorkerMessage } from "../../../worker/engines/messages.js";
import { openRankEngines, type RankEngines } from "../../../worker/engines/rank-engines.js";
import { LAYOUT, type TestFleet, testFleet } from "../../reloads/fleet.js";

const KEY = "0/0";

let fleet: TestFleet;
let handlers: Pick<LinkServerOptions, "onMessage" | "onEnd">;
let sent: [link: number, message: WorkerMessage][];
let ended: number[];
let engines: RankEngines;
let look: () => void;
let isRedisAway: boolean;
/** What happens while it is looked up. */
let onRecipe: () => void;
let freeAt: number;
let now: number;

/** What has begun is over, as far as it can be. */
const settled = () => new Promise((resolve) => setImmediate(resolve));

async function lookNow(): Promise<void> {
  look();
  await settled();
}

function storeOf(): FleetStore {
  const answering = async <Result>(answer: () => Result): Promise<Result> => {
    if (isRedisAway) throw new Error("Redis is away");
    return answer();
  };
  return {
    readOutline: () => answering(() => ({ state: fleet.state, context: fleet.context })),
    transact: (_: string, transition: never) =>
      answering(() => ({ result: fleet.apply(transition), state: fleet.state })),
  } as unknown as FleetStore;
}

async function openEngines(incarnation: string): Promise<void> {
  const page = () => ({
    ...{ state: "live", epoch: fleet.state.ranks[KEY]?.live.held?.epoch ?? 0, layoutDigest: LAYOUT },
    weightVersion: fleet.state.ranks[KEY]?.live.held?.weightVersion ?? "",
  });
  const delay = async (ms: number) => {
    now += ms;
  };
  const every = (_: number, call: () => void) => {
    look = call;
    return () => {};
  };
  engines = await openRankEngines({
    ...{ fleet: "f", key: KEY, rank: 0, tensorParallelSize: 1, incarnation, lockPath: "running.lock" },
    core: { openLock: () => ({}) as FileLock, tryLock: () => now >= freeAt, unlock: () => {} } as unknown as NativeCore,
    arena: { page } as never,
    store: storeOf(),
    plans: {
      async layout() {
        onRecipe();
        return { scheme: "fp8-channel" } as never;
      },
    },
    log: pino({ level: "silent" }),
    clock: { now: () => now, delay, every },
    async openLinks(given) {
      handlers = given;
      return {
        send: (link, message) => void sent.push([link, message]),
        end(link, message) {
          if (message !== null) sent.push([link, message]);
          ended.push(link);
        },
        close: () => {},
      };
    },
  });
}

function hello(link: number, more: Partial<Hello> = {}): void {
  handlers.onMessage(link, {
    kind: "hello",
    hello: {
      ...{ hello: 1, engine: "e-0", role: "rank", name: "vllm", version: "0.26.0", pid: 10, host: "h", url: null },
      ...{ world: 1, rank: 0, data_parallel_rank: 0, state: "starting" },
      ...more,
    },
  });
}

const states = (state: FleetState = fleet.state) => state.ranks[KEY]?.engines?.map((engine) => engine.state);

beforeEach(async () => {
  [sent, ended, isRedisAway, freeAt, now] = [[], [], false, 0, 0];
  onRecipe = () => {};
  fleet = testFleet(1);
  await openEngines("0.1");
});

describe("an engine that starts", () => {
  it("is answered when the fleet has weights and has written it down, with their recipe", async () => {
    hello(1);
    await settled();
    expect([sent, states()]).toEqual([[], ["waiting"]]);
    fleet.commit("a");
    await lookNow();
    expect(sent).toEqual([[1, { welcome: 1, epoch: 1, weight_version: "a", recipe: "fp8-channel" }]]);
    expect(states()).toEqual(["starting"]);
    hello(2, { role: "core" });
    handlers.onMessage(2, { kind: "ready" });
    await settled();
    await lookNow();
    expect(states()).toEqual(["ready"]);
  });

  it("that ends while it is let in is told as gone: nothing waits for it", async () => {
    fleet.commit("a");
    onRecipe = () => handlers.onEnd(1);
    hello(1);
    await settled();
    expect(states()).toEqual(["gone"]);
    expect(sent).toEqual([]);
  });

  it("is not answered while Redis is away, and is once it is back", async () => {
    fleet.commit("a");
    isRedisAway = true;
    hello(1);
    await settled();
    expect(sent).toEqual([]);
    isRedisAway = false;
    await lookNow();
    expect(sent).toHaveLength(1);
  });

  it("is refused with a sentence when it does not fit, and nobody hears of it", async () => {
    hello(1, { world: 2 });
    await settled();
    expect(sent).toEqual([[1, { refused: "invalid_request", message: expect.stringContaining("2 ranks") }]]);
    expect(ended).toEqual([1]);
    expect(states()).toEqual([]);
  });
});

describe("an engine that computes already", () => {
  it("is answered at once, also without Redis; its older link is closed", async () => {
    isRedisAway = true;
    hello(1, { state: "ready" });
    hello(2, { state: "ready" });
    expect(sent.map(([link]) => link)).toEqual([1, 2]);
    expect(ended).toEqual([1]);
    handlers.onEnd(1);
    await settled();
    isRedisAway = false;
    await lookNow();
    expect(states()).toEqual(["starting"]);
  });

  it("is told to stop when it calls in the middle of a swap, and to go on after it", async () => {
    freeAt = 5;
    await engines.whileStill({ epoch: 7, reload: "r7" }, async () => {
      hello(3, { role: "core", state: "ready" });
    });
    expect(sent.map(([, message]) => Object.keys(message)[0])).toEqual(["welcome", "stop", "go"]);
  });
});

describe("what the fleet is told", () => {
  it("follows links' ends, and the engine's trouble and last stop", async () => {
    fleet.commit("a");
    hello(1, { state: "ready" });
    hello(2, { role: "core", state: "ready" });
    handlers.onMessage(2, { kind: "trouble", trouble: "No." });
    await settled();
    await lookNow();
    expect(fleet.state.ranks[KEY]?.engines).toMatchObject([{ state: "ready", trouble: "No." }]);
    const running = { running: 1, stop_ms: 2, still_ms: 1, weight_version: "a" };
    handlers.onMessage(2, { kind: "running", running });
    await settled();
    expect(fleet.state.ranks[KEY]?.engines).toMatchObject([{ trouble: null, lastStop: { epoch: 1, stopMs: 2 } }]);
    expect(engines.leases()).toEqual(fleet.state.ranks[KEY]?.engines);
    handlers.onEnd(2);
    await settled();
    expect(states()).toEqual(["gone"]);
    engines.close();
    handlers.onEnd(1);
    await settled();
    expect(fleet.state.ranks[KEY]?.engines).toMatchObject([{ state: "gone", pid: 10 }]);
  });

  it("keeps what the worker before has told, for as long as its engine may take to call again", async () => {
    fleet.commit("a");
    hello(1, { state: "ready" });
    hello(2, { role: "core", state: "ready" });
    await settled();
    await lookNow();
    const before = fleet.state.ranks[KEY];
    const { redisRunId: _, ...registration } = { ...before, incarnation: "0.2" } as NonNullable<typeof before>;
    const place = { replicas: 1, tensorParallelSize: 1, expertParallel: false, highestEpoch: 1 };
    fleet.apply((draft, context) => register(draft, { ...registration, engines: null, ...place } as never, context));
    await openEngines("0.2");
    await lookNow();
    expect(states()).toEqual(["ready"]);
    now += 5_000;
    await lookNow();
    expect(states()).toEqual(["gone"]);
  });
});
