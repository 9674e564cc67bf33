// A worker that dies at any point of a reload: its successor takes the reload on, and it commits.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { describeFaults, readControlPage } from "./fault-fleet.js";

const SWAPPING = 2;

describeFaults("a worker killed", { tp: 2 }, (fleet) => {
  const points = {
    layer: "before a layer",
    layer_running: "while a layer is being read",
    layer_done: "between two layers",
    finalize: "after its last layer",
    finalize_running: "while finalizing",
    prepared: "when prepared, its token not handed in",
    token: "when its token is handed in",
    swap: "before its swap",
    swapped: "after its swap, which nobody has heard of",
  };
  it.each(Object.entries(points))("at worker.%s, %s: the reload commits", async (point) => {
    const fault = fleet.cluster.fault(`worker.${point}@0-1`, "kill");
    const reload = await fleet.submit("v2");
    await fault.hit();
    await fleet.commits(reload, "v2");
    await fleet.goesOn();
  });

  it("while one layer is quantized and the next is being read: the reload commits", async () => {
    const first = fleet.cluster.fault("worker.layer_running@0-1", "wait", 0);
    const second = fleet.cluster.fault("worker.layer_running@0-1", "kill", 1);
    const reload = await fleet.submit("v2", { policy: { layers_per_job: 3 } });
    await first.hit();
    await second.hit();
    await fleet.commits(reload, "v2");
    await fleet.goesOn();
  });

  it("again while it catches up with what it had before: the reload commits", async () => {
    const { cluster } = fleet;
    const faults = [0, 1, 2].map((n) => cluster.fault("worker.layer_running@0-1", "kill", n));
    const reload = await fleet.submit("v2");
    for (const fault of faults) await fault.hit();
    await fleet.commits(reload, "v2");
    await fleet.goesOn();
  });

  it.each(["swap_begun", "exchanging", "exchanged"])(
    "in the middle of its swap (worker.%s) leaves an odd generation, which its successor heals: the reload commits",
    async (point) => {
      const { cluster } = fleet;
      const successor = cluster.fault("worker.starting@0-1", "wait");
      const fault = cluster.fault(`worker.${point}@0-1`, "kill");
      const reload = await fleet.submit("v2");
      await fault.hit();
      await successor.hit();
      const { epoch } = await cluster.client.reload(reload.reload_id);
      const page = readControlPage(readFileSync(join(cluster.runDir, cluster.fleet, "replica-0", "rank-1", "control")));
      expect(page).toMatchObject({ state: SWAPPING, epoch: BigInt(epoch ?? 0) });
      expect(page.generation % 2n).toBe(1n);
      const again = cluster.fault("worker.layer@0-1", "wait");
      successor.release();
      await again.hit();
      const view = await cluster.client.fleet(cluster.fleet);
      expect(view).toMatchObject({ routable: false, ranks: [{}, { arena_state: "torn" }] });
      again.release();
      await fleet.commits(reload, "v2");
      await fleet.goesOn();
    },
  );

  it("on every rank in the middle of the swap: the reload commits", async () => {
    const faults = [0, 1].map((rank) => fleet.cluster.fault(`worker.exchanging@0-${rank}`, "kill"));
    const reload = await fleet.submit("v2");
    for (const fault of faults) await fault.hit();
    await fleet.commits(reload, "v2");
    await fleet.goesOn();
  });

  it("while a reload writes in place: the reload commits", async () => {
    const fault = fleet.cluster.fault("worker.layer_running@0-1", "kill");
    const reload = await fleet.submit("v2", { install: { mode: "in_place" } });
    await fault.hit();
    await fleet.commits(reload, "v2");
    await fleet.goesOn();
  });

  it("while nothing runs comes back with the weights it held", async () => {
    const { cluster } = fleet;
    const before = await cluster.client.fleet(cluster.fleet);
    process.kill(cluster.pidOf("worker 0/1"), "SIGKILL");
    await cluster.fleetWhere(({ ranks }) => ranks[1]?.incarnation !== before.ranks[1]?.incarnation);
    await fleet.holds("v1");
    await fleet.goesOn();
  });
});
