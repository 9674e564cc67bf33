// Many submissions at once: which of them go, which give way, and which run out of time while they wait.

import { expect, it } from "vitest";
import { describeFaults } from "./fault-fleet.js";

const QUEUED = 50;

describeFaults("many submissions", { tp: 2 }, (fleet) => {
  it("with coalesce latest the newest of 50 wins, and every other says by whom it was superseded", async () => {
    const { cluster } = fleet;
    const held = cluster.fault("worker.layer@0-0", "wait");
    const running = await fleet.submit("v2");
    await held.hit();
    const queued = await Promise.all(Array.from({ length: QUEUED }, () => fleet.submit("v1")));
    const newest = await fleet.submit("v2", { policy: { coalesce: "latest" } });
    held.release();
    await fleet.commits(newest, "v2");
    for (const { reload_id } of [running, ...queued]) {
      expect(await cluster.ended(reload_id)).toMatchObject({
        state: "superseded",
        superseded_by: newest.reload_id,
        live_changed: false,
      });
    }
    await fleet.goesOn();
  });

  it("a decided reload is superseded by nobody: it commits, and the newest after it", async () => {
    const { cluster } = fleet;
    const held = cluster.fault("worker.swap@0-0", "wait");
    const decided = await fleet.submit("v2");
    await held.hit();
    const newest = await fleet.submit("v1", { policy: { coalesce: "latest" } });
    expect((await cluster.client.reload(decided.reload_id)).state).toBe("committing");
    held.release();
    expect((await cluster.ended(decided.reload_id)).state).toBe("committed");
    await fleet.commits(newest, "v1");
    await fleet.goesOn();
  });

  it("one whose deadline passes in the queue fails and says so; those behind it go on", async () => {
    const { cluster } = fleet;
    const held = cluster.fault("worker.layer@0-0", "wait");
    const running = await fleet.submit("v2");
    await held.hit();
    const late = await fleet.submit("v1", { policy: { deadline_ms: 1 } });
    const behind = await fleet.submit("v1");
    expect(await cluster.ended(late.reload_id)).toMatchObject({
      state: "failed",
      epoch: null,
      live_changed: false,
      error: { code: "deadline_exceeded" },
    });
    held.release();
    expect((await cluster.ended(running.reload_id)).state).toBe("committed");
    await fleet.commits(behind, "v1");
    await fleet.goesOn();
  });
});
