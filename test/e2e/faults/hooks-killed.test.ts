// Who dies between pause and resume: the engines are resumed all the same (P12).

import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from "vitest";
import { everyOther } from "../../deep.js";
import { isAlive } from "../cluster.js";
import { goOn, type SecondOrchestrator, startOrchestrator, submitToBoth } from "../more-processes.js";
import { describeEngines } from "./engine-fleet.js";

const STEPS = {
  pausing: "before the pause is called",
  paused: "when engines are paused, and it is not recorded",
  resuming: "before the resume is called",
  resumed: "when engines are resumed, and it is not recorded",
};

/** Longer than a claim on a call lasts, and than what the others then do. */
const LATE_MS = 7_000;

describeEngines("an orchestrator killed with engines", (fleet) => {
  it.each(everyOther(Object.entries(STEPS)))(
    "at orchestrator.%s, %s: the reload commits, the engine runs",
    async (step) => {
      await fleet.hooks({ timeout_ms: 500 });
      const fault = fleet.cluster.fault(`orchestrator.${step}`, "kill");
      const reload = await fleet.submit("v2");
      await fault.hit();
      await fleet.commits(reload, "v2");
      expect(fleet.engine().paused()).toBe(false);
      expect(fleet.engine().calls.at(-1)?.what).toBe("resume");
      await fleet.goesOn();
    },
  );

  it.each(["swap", "exchanged"])(
    "together with a worker at worker.%s: the reload commits, the engine runs",
    async (point) => {
      const { cluster } = fleet;
      const held = cluster.fault(`worker.${point}@0-1`, "wait");
      const reload = await fleet.submit("v2");
      const worker = await held.hit();
      expect(fleet.engine().paused()).toBe(true);
      for (const pid of [worker, cluster.pidOf("orchestrator")]) process.kill(pid, "SIGKILL");
      await fleet.commits(reload, "v2");
      expect(fleet.engine().calls.map((call) => call.what)).toEqual(["pause", "resume"]);
      await fleet.goesOn();
    },
  );
});

describeEngines("a rank lost while engines stand still", (fleet) => {
  it("tears the fleet and leaves them standing, until the commit that heals it", async () => {
    const { cluster } = fleet;
    const away = cluster.fault("worker.starting@0-1", "wait");
    const lost = cluster.fault("worker.swap@0-1", "kill");
    const { reload_id } = await fleet.submit("v2", { policy: { heal_ms: 300 } });
    await lost.hit();
    expect((await cluster.ended(reload_id)).error?.code).toBe("fleet_torn");
    expect(fleet.engine().paused()).toBe(true);
    away.release();
    const healing = await fleet.submit("v1");
    await fleet.commits(healing, "v1");
    expect(fleet.engine().paused()).toBe(false);
    await fleet.goesOn();
  });
});

describeEngines("of two orchestrators with engines", (fleet) => {
  let second: SecondOrchestrator;
  beforeAll(async () => {
    second = await startOrchestrator(fleet.cluster);
  });
  beforeEach(async () => {
    if (!isAlive(second.pid)) second = await startOrchestrator(fleet.cluster); // the law before has killed it
  });
  afterEach(() => goOn(fleet.cluster, second));
  afterAll(() => second.end());

  it.each(everyOther(Object.keys(STEPS), 1))(
    "one stands still at orchestrator.%s: the other commits, and the late one pauses nobody",
    async (step) => {
      const { cluster } = fleet;
      await fleet.hooks({ timeout_ms: 500 });
      const fault = cluster.fault(`orchestrator.${step}`, "stop");
      const { reload_id } = await submitToBoth(cluster, second, fleet.body("v2"));
      const pid = await fault.hit();
      const other = pid === second.pid ? cluster.client : second.client;
      await cluster.until("the other orchestrator to commit", async () => {
        const { state } = await other.reload(reload_id);
        return state === "committed" || null;
      });
      expect(fleet.engine().paused()).toBe(false);
      process.kill(pid, "SIGCONT");
      await fleet.holds("v2");
      expect(fleet.engine().paused()).toBe(false);
      await fleet.goesOn();
    },
  );

  it.each(["resuming", "paused"])(
    "one comes back from orchestrator.%s into the next reload: its engines stay paused",
    async (step) => {
      const { cluster } = fleet;
      await fleet.hooks({ timeout_ms: 500 });
      const fault = cluster.fault(`orchestrator.${step}`, "stop");
      const { reload_id } = await submitToBoth(cluster, second, fleet.body("v2"));
      const pid = await fault.hit();
      const other = pid === second.pid ? cluster.client : second.client;
      const mine = `"pid":${pid}`;
      await cluster.until("the other orchestrator to commit", async () => {
        const { state } = await other.reload(reload_id);
        return state === "committed" || null;
      });
      const held = cluster.fault("worker.swap@0-1", "wait");
      const { source, ...body } = fleet.body("v1");
      const next = await other.submit({ source: { kind: "safetensors", uri: source }, ...body });
      await held.hit();
      expect(fleet.engine().paused()).toBe(true);
      const lines = cluster.lines.length;
      process.kill(pid, "SIGCONT");
      if (step === "resuming") {
        const late = (line: string) => line.includes(mine) && line.includes("too late to resume");
        await cluster.until("the late one to say so", async () => cluster.lines.slice(lines).some(late) || null);
      }
      await (pid === second.pid ? second.client : cluster.client).fleet(cluster.fleet);
      expect(fleet.engine().paused()).toBe(true);
      held.release();
      await fleet.commits(next, "v1");
      expect(fleet.engine().paused()).toBe(false);
      await fleet.goesOn();
    },
  );

  it("one stands still while an engine takes its time to pause: paused after all others have gone on, it is resumed", async () => {
    const { cluster } = fleet;
    const engine = fleet.engine();
    await fleet.hooks({ timeout_ms: 500 });
    engine.next("pause", { slowMs: LATE_MS });
    const calling = cluster.fault("orchestrator.pausing", "wait");
    const { reload_id } = await submitToBoth(cluster, second, fleet.body("v2"));
    const pid = await calling.hit();
    calling.release();
    await cluster.until("the engine to be called", async () => engine.calls.length > 0 || null);
    process.kill(pid, "SIGSTOP");
    const other = pid === second.pid ? cluster.client : second.client;
    await cluster.until("the other orchestrator to commit", async () => {
      const { state } = await other.reload(reload_id);
      return state === "committed" || null;
    });
    expect(engine.calls.map((call) => call.what)).toEqual(["pause", "pause", "resume"]);
    await cluster.until("the engine to pause late", async () => engine.paused() || null);
    process.kill(pid, "SIGCONT");
    await cluster.until("the engine to be resumed", async () => !engine.paused() || null);
    await fleet.holds("v2");
    await fleet.goesOn();
  });
});
