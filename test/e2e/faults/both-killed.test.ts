// A worker and the orchestrator that die in the same moment, at every stage of a reload.

import { it } from "vitest";
import { everyOther } from "../../deep.js";
import { describeFaults } from "./fault-fleet.js";

describeFaults("a worker and the orchestrator killed at once", { tp: 2 }, (fleet) => {
  const points = ["layer", "layer_done", "finalize", "prepared", "token", "swap", "swap_begun", "exchanged", "swapped"];
  it.each(everyOther(points))("with the worker at worker.%s: the reload commits", async (point) => {
    const { cluster } = fleet;
    const held = cluster.fault(`worker.${point}@0-1`, "wait");
    const reload = await fleet.submit("v2");
    const worker = await held.hit();
    for (const pid of [worker, cluster.pidOf("orchestrator")]) process.kill(pid, "SIGKILL");
    await fleet.commits(reload, "v2");
    await fleet.goesOn();
  });

  it("and all other workers too, in the middle of the swap: the reload commits", async () => {
    const { cluster } = fleet;
    const held = [0, 1].map((rank) => cluster.fault(`worker.swap_begun@0-${rank}`, "wait"));
    const reload = await fleet.submit("v2");
    const workers = await Promise.all(held.map((fault) => fault.hit()));
    for (const pid of [...workers, cluster.pidOf("orchestrator")]) process.kill(pid, "SIGKILL");
    await fleet.commits(reload, "v2");
    await fleet.goesOn();
  });
});
