// An engine that computes with the arenas (P14), as a process of its own: it is stopped for each swap, never reads a mix, and serves
// again whoever dies.

import { afterEach, beforeEach, expect, it } from "vitest";
import type { AttachedEngineView } from "../../../orchestrator/contract/engines.js";
import { startEngine } from "../engine.js";
import { type FakeEngine, startFakeEngine, startReadyEngine } from "../fake-engine.js";
import { describeFaults, type FaultFleet } from "./fault-fleet.js";

const engines: FakeEngine[] = [];

function kept(engine: FakeEngine): FakeEngine {
  engines.push(engine);
  return engine;
}

async function viewOf({ cluster }: FaultFleet, { id }: FakeEngine): Promise<AttachedEngineView | undefined> {
  const { attached_engines } = await cluster.client.fleet(cluster.fleet);
  return attached_engines.find((engine) => engine.id === id);
}

function where({ cluster }: FaultFleet, { id }: FakeEngine, matches: (view: AttachedEngineView) => boolean) {
  return cluster.fleetWhere(({ attached_engines }) =>
    attached_engines.some((engine) => engine.id === id && matches(engine)),
  );
}

/** It computes with what the fleet holds, and each version was one set of bytes whenever it was read. */
async function serves(fleet: FaultFleet, engine: FakeEngine, version: string): Promise<void> {
  const [rank] = (await fleet.cluster.client.fleet(fleet.cluster.fleet)).ranks;
  const epoch = rank?.epoch;
  const digests = await fleet.cluster.until(`engine ${engine.id} to serve ${version}`, async () => {
    const seen = await engine.seen();
    return seen.has(`${epoch} ${version}`) ? seen : null;
  });
  const byVersion = new Map([...digests].map(([of, digest]) => [of.split(" ")[1], digest]));
  expect([...digests].filter(([of, digest]) => byVersion.get(of.split(" ")[1]) !== digest)).toEqual([]);
  expect(new Set(byVersion.values()).size).toBe(byVersion.size);
}

describeFaults("an attached engine", { tp: 2 }, (fleet) => {
  let engine: FakeEngine;
  beforeEach(async () => {
    await fleet.commits(await fleet.submit("v1"), "v1");
    engine = kept(await startReadyEngine(fleet.cluster));
  });
  afterEach(async () => {
    await Promise.all(engines.splice(0).map((one) => one.kill()));
  });

  it("is stopped for every swap, rollbacks too, and never computes with a mix; the fleet says how long it stood still", async () => {
    for (const version of ["v2", "v1", "v2", "v1", "v2"] as const) {
      expect(await fleet.cluster.reload(fleet.body(version))).toMatchObject({ state: "committed", error: null });
    }
    const { reload_id } = await fleet.cluster.client.rollback(fleet.cluster.fleet, {});
    await fleet.commits({ reload_id } as never, "v1");
    await serves(fleet, engine, "v1");
    const { epoch } = await fleet.cluster.client.fleet(fleet.cluster.fleet);
    await where(fleet, engine, ({ last_stop }) => last_stop?.epoch === epoch);
    expect(await viewOf(fleet, engine)).toMatchObject({
      ...{ name: "fake", state: "ready", trouble: null },
      ranks: [0, 1].map((rank) => ({ replica: 0, rank, pid: engine.child.pid })),
      last_stop: { weight_version: "v1", stop_ms: expect.any(Number), still_ms: expect.any(Number) },
    });
  });

  it("that starts holds the decision back until it is ready, and no longer when it dies", async () => {
    for (const isKilled of [false, true]) {
      const starting = kept(startFakeEngine(fleet.cluster));
      await starting.says("state");
      const reload = await fleet.submit("v2");
      await fleet.cluster.until("the reload to wait for the engine", async () => {
        const { pending_reason } = await fleet.cluster.client.reload(reload.reload_id);
        return pending_reason?.startsWith(`waiting for engines to have started: fake 0 ${starting.id}`) || null;
      });
      if (isKilled) await starting.kill();
      else starting.order("ready");
      await fleet.commits(reload, "v2");
      if (!isKilled) await serves(fleet, starting, "v2");
    }
    await serves(fleet, engine, "v2");
  });

  it("killed while it stands still, or while it computes, is gone, and holds up nothing", async () => {
    const held = fleet.cluster.fault("worker.swap_begun@0-1", "wait");
    const reload = await fleet.submit("v2");
    await held.hit();
    await engine.says("still");
    await engine.kill();
    held.release();
    await fleet.commits(reload, "v2");
    await fleet.cluster.fleetWhere(({ attached_engines }) => attached_engines.every(({ state }) => state === "gone"));
    const next = kept(await startReadyEngine(fleet.cluster));
    await next.kill();
    await fleet.goesOn();
  });

  it.each(["swap_begun", "exchanged", "swapped"])(
    "computes again after its worker was killed at worker.%s, old or new",
    async (point) => {
      const fault = fleet.cluster.fault(`worker.${point}@0-1`, "kill");
      const reload = await fleet.submit("v2");
      await fault.hit();
      await fleet.commits(reload, "v2");
      await serves(fleet, engine, "v2");
      await where(fleet, engine, ({ state }) => state === "ready");
    },
  );

  it("computes again after the orchestrator was killed between decision and signal", async () => {
    const hooked = await startEngine();
    const { client, fleet: name } = fleet.cluster;
    const [pause, resume] = [{ url: `${hooked.url}/pause` }, { url: `${hooked.url}/resume` }];
    await client.setHooks(name, { pause, resume, timeout_ms: 500 });
    try {
      const unsignalled = fleet.cluster.fault("orchestrator.pausing", "kill");
      const reload = await fleet.submit("v2");
      await unsignalled.hit();
      await fleet.commits(reload, "v2");
      await serves(fleet, engine, "v2");
    } finally {
      await client.clearHooks(name);
      await hooked.close();
    }
  });

  it("that never gives its lock back is named, no byte changes, and its end lets the commit end", async () => {
    engine.order("hold");
    await engine.says("holds");
    const reload = await fleet.submit("v2");
    await fleet.cluster.until("the engine to be named", async () => {
      const { pending_reason } = await fleet.cluster.client.reload(reload.reload_id);
      return (pending_reason?.includes("engine_running") && pending_reason.includes(engine.id)) || null;
    });
    const seen = await engine.seen();
    expect([...seen.keys()].every((of) => of.endsWith(" v1"))).toBe(true);
    await engine.kill();
    await fleet.commits(reload, "v2");
  });

  it("refuses what it could not follow: another layout, and writing in place", async () => {
    const install = { allow_new_layout: true };
    const other = await fleet.cluster.reload(fleet.body("v2", { recipe: { scheme: "none" }, install }));
    expect(other).toMatchObject({ state: "failed", live_changed: false, error: { code: "engine_attached" } });
    await expect(fleet.submit("v2", { install: { mode: "in_place" } })).rejects.toMatchObject({
      code: "engine_attached",
      details: { engines: [expect.stringContaining(engine.id)] },
    });
    await fleet.holds("v1");
    await serves(fleet, engine, "v1");
  });
});
