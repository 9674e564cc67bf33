// Engines stand still while live bytes change (P12): paused before the first rank swaps, resumed after the last, whatever
// fails on either side.

import { expect, it } from "vitest";
import { describeEngines } from "./engine-fleet.js";

describeEngines("engines", (fleet) => {
  const whats = () => fleet.engine().calls.map((call) => call.what);

  it("are paused before the first swap and resumed after the last, and the stop is measured", async () => {
    const { cluster } = fleet;
    fleet.engine().next("resume", { slowMs: 300 });
    const held = cluster.fault("worker.swap@0-1", "wait");
    const reload = await fleet.submit("v2");
    await held.hit();
    expect(whats()).toEqual(["pause"]);
    expect(fleet.engine().paused()).toBe(true);
    expect(await cluster.client.fleet(cluster.fleet)).toMatchObject({ routable: false, engines: { state: "paused" } });
    held.release();
    const ended = await fleet.commits(reload, "v2");
    const [pause, resume] = fleet.engine().calls;
    expect(whats()).toEqual(["pause", "resume"]);
    expect([pause, resume].map((call) => [call?.reload, call?.epoch])).toEqual(
      [0, 1].map(() => [ended.reload_id, ended.epoch]),
    );
    const measured = (resume?.answeredAt ?? 0) - (pause?.answeredAt ?? 0);
    expect(ended.engine_stopped_ms).toBeGreaterThan(measured - CLOCKS_MS);
    expect(ended.engine_stopped_ms).toBeLessThan(measured + SLACK_MS);
    expect(ended.warnings).toEqual([]);
    await fleet.goesOn();
  });

  it("that do not pause, with abort, fail the reload: nothing live has changed, and they are resumed", async () => {
    fleet.engine().next("pause", { status: 500 });
    const { reload_id } = await fleet.submit("v2");
    const ended = await fleet.cluster.ended(reload_id);
    expect(ended).toMatchObject({ state: "failed", live_changed: false, error: { code: "hook_failed" } });
    expect(ended.error?.message).toContain("500");
    await fleet.holds("v1");
    expect(whats()).toEqual(["pause", "resume"]);
    expect(fleet.engine().paused()).toBe(false);
    await fleet.goesOn();
  });

  it("that do not pause, with proceed, cost a warning: the reload commits", async () => {
    await fleet.hooks({ on_failure: "proceed" });
    fleet.engine().next("pause", { status: 500 });
    const ended = await fleet.commits(await fleet.submit("v2"), "v2");
    expect(ended.warnings).toMatchObject([{ code: "hook_failed" }]);
    expect(whats()).toEqual(["pause", "resume"]);
    await fleet.goesOn();
  });

  it("that hang are not waited for past the limit: the reload fails, and they are resumed", async () => {
    await fleet.hooks({ timeout_ms: 200 });
    fleet.engine().next("pause", { hangs: true });
    const { reload_id } = await fleet.submit("v2");
    const ended = await fleet.cluster.ended(reload_id);
    expect(ended).toMatchObject({ state: "failed", live_changed: false, error: { code: "hook_failed" } });
    expect(ended.error?.message).toContain("200 ms");
    await fleet.holds("v1");
    expect(whats()).toEqual(["pause", "resume"]);
    await fleet.goesOn();
  });

  it.each([{ status: 503 }, { hangs: true } as const])(
    "that do not resume (%o) keep the committed fleet unroutable until they do",
    async (behaviour) => {
      const { cluster } = fleet;
      await fleet.hooks({ timeout_ms: 200 });
      for (const _ of [1, 2]) fleet.engine().next("resume", behaviour);
      const { reload_id } = await fleet.submit("v2");
      await cluster.fleetWhere((view) => view.not_routable_reason?.startsWith("hook_failed") === true);
      await fleet.holds("v2");
      expect(whats()).toEqual(["pause", "resume", "resume", "resume"]);
      expect(fleet.engine().paused()).toBe(false);
      expect(await cluster.ended(reload_id)).toMatchObject({ state: "committed", warnings: [{ code: "hook_failed" }] });
      await fleet.goesOn();
    },
  );

  it("are paused before the first write of a reload in place, and resumed after it", async () => {
    const { cluster } = fleet;
    const held = cluster.fault("worker.layer@0-1", "wait");
    const reload = await fleet.submit("v2", { install: { mode: "in_place" } });
    await held.hit();
    expect(whats()).toEqual(["pause"]);
    held.release();
    await fleet.commits(reload, "v2");
    expect(whats()).toEqual(["pause", "resume"]);
    await fleet.goesOn();
  });

  it("paused for a reload that writes in place and is cancelled before its first write are resumed", async () => {
    const { cluster } = fleet;
    const held = cluster.fault("orchestrator.paused", "wait");
    const { reload_id } = await fleet.submit("v2", { install: { mode: "in_place" } });
    await held.hit();
    expect(await cluster.client.cancel(reload_id)).toMatchObject({ state: "cancelled" });
    held.release();
    await fleet.holds("v1");
    expect(fleet.engine().paused()).toBe(false);
    expect(await cluster.client.reload(reload_id)).toMatchObject({ live_changed: false });
    await fleet.goesOn();
  });
});

/** The answers' way to the orchestrator, on a busy machine. */
const CLOCKS_MS = 100;
const SLACK_MS = 1_000;
