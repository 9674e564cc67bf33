// One host's clock is an hour ahead. Leases, deadlines and times go by Redis's clock, so nothing else may change.

import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { describeFaults } from "./fault-fleet.js";

const PRELOAD = join(import.meta.dirname, "../skewed-clock.cjs");
const HOUR_MS = 3_600_000;

const SKEWED = { "--rank 1": "worker 0/1", orchestrator: "orchestrator" };

describe.each(Object.entries(SKEWED))("%s", (SKEWED_ARGUMENTS, name) => {
  const env = { NODE_OPTIONS: `--require "${PRELOAD}"`, SKEWED_ARGUMENTS };
  describeFaults("its clock an hour ahead", { tp: 2, env }, (fleet) => {
    it("and nobody else's", () => {
      const now = Date.now();
      for (const line of fleet.cluster.lines) {
        const [, source, time] = /^([^:]+): .*"time":"([^"]+)"/.exec(line) ?? [];
        if (time !== undefined) expect(Date.parse(time) > now).toBe(source === name);
      }
    });

    it("a job that fails twice is tried again at once, and the reload commits in its time", async () => {
      const { cluster } = fleet;
      const faults = [0, 1].map((n) => cluster.fault("worker.layer@0-1", "fail", n));
      const reload = await fleet.submit("v2", { policy: { backoff_ms: 20, deadline_ms: 20_000 } });
      for (const fault of faults) await fault.hit();
      const { timing_ms, engine_stopped_ms } = await fleet.commits(reload, "v2");
      expect(timing_ms.total).toBeLessThan(HOUR_MS / 60);
      expect(engine_stopped_ms).toBeLessThan(HOUR_MS / 60);
      await fleet.goesOn();
    });

    it("a deadline passes when it is over and not before", async () => {
      const { cluster } = fleet;
      const held = cluster.fault("worker.layer@0-1", "wait");
      const { reload_id } = await fleet.submit("v2", { policy: { deadline_ms: 500 } });
      await held.hit();
      const ended = await cluster.ended(reload_id);
      held.release();
      expect(ended).toMatchObject({ state: "failed", live_changed: false, error: { code: "deadline_exceeded" } });
      expect(ended.timing_ms.total).toBeGreaterThanOrEqual(500);
      await fleet.holds("v1");
      await fleet.goesOn();
    });

    it("a worker killed is missed, comes back, and the reload commits", async () => {
      const fault = fleet.cluster.fault("worker.prepared@0-1", "kill");
      const reload = await fleet.submit("v2");
      await fault.hit();
      await fleet.commits(reload, "v2");
      await fleet.goesOn();
    });

    it("an orchestrator killed takes the reload on again", async () => {
      const fault = fleet.cluster.fault("orchestrator.planned", "kill");
      const reload = await fleet.submit("v2");
      await fault.hit();
      await fleet.commits(reload, "v2");
      await fleet.goesOn();
    });
  });
});
