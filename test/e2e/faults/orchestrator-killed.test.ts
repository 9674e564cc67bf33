// An orchestrator that dies at any step of a reload: it goes on from the record, in its next life or in another process.

import { expect, it } from "vitest";
import { atStep, describeFaults } from "./fault-fleet.js";

const STEPS = {
  start: "before planning",
  planned: "when the plan is saved, and nothing enqueued",
  enqueued: "when jobs are sent, and it is not noted",
  decide: "before deciding",
  decided: "when it is decided, and nobody told",
  swaps_sent: "when the swaps are sent",
};

describeFaults("an orchestrator killed", { tp: 2 }, (fleet) => {
  it.each(Object.entries(STEPS))("at orchestrator.%s, %s: the reload commits", async (step) => {
    const fault = atStep(fleet, step, "kill");
    const reload = await fleet.submit("v2");
    await fault.reached();
    await fleet.commits(reload, "v2");
    await fleet.goesOn();
  });

  const moments = { layer: "loading", finalize: "finalizing", prepared: "finalizing", swap: "committing" };
  it.each(Object.entries(moments))("while a rank is at worker.%s (%s): the reload commits", async (point, state) => {
    const { cluster } = fleet;
    const held = cluster.fault(`worker.${point}@0-1`, "wait");
    const reload = await fleet.submit("v2");
    await held.hit();
    if (point !== "layer") await cluster.reached(reload.reload_id, state === "committing" ? "committing" : "loading");
    process.kill(cluster.pidOf("orchestrator"), "SIGKILL");
    held.release();
    await fleet.commits(reload, "v2");
    await fleet.goesOn();
  });

  it("and its ranks swap without it once it is decided", async () => {
    const { cluster } = fleet;
    const held = cluster.fault("worker.swap@0-1", "wait");
    const back = cluster.fault("orchestrator.starting", "wait");
    const { reload_id } = await fleet.submit("v2");
    await held.hit();
    process.kill(cluster.pidOf("orchestrator"), "SIGKILL");
    await back.hit();
    held.release();
    const swapped = () => cluster.lines.some((line) => line.includes(reload_id) && line.includes('"msg":"committed"'));
    await cluster.until("a worker to publish", async () => swapped() || null);
    back.release();
    await fleet.holds("v2");
    expect((await cluster.ended(reload_id)).state).toBe("committed");
    await fleet.goesOn();
  });
});
