// Two replicas commit together; one that stays dead is drained, the other goes on, and it joins again by catching up.

import { expect, it } from "vitest";
import { describeFaults } from "./fault-fleet.js";

describeFaults("two replicas", { tp: 2, replicas: 2 }, (fleet) => {
  it("commit together, and the same rank of both holds the same bytes", async () => {
    const { cluster } = fleet;
    const held = cluster.fault("worker.prepared@1-1", "wait");
    const reload = await fleet.submit("v2");
    await held.hit();
    await fleet.holds("v1");
    held.release();
    await fleet.commits(reload, "v2");
    for (const rank of [0, 1]) expect(await cluster.export(rank, 0)).toEqual(await cluster.export(rank, 1));
    await fleet.goesOn();
  });

  it.each(["layer", "swap_begun"])("commit together, though a worker of one is killed at worker.%s", async (point) => {
    const fault = fleet.cluster.fault(`worker.${point}@1-0`, "kill");
    const reload = await fleet.submit("v2");
    await fault.hit();
    await fleet.commits(reload, "v2");
    await fleet.goesOn();
  });

  it.each(["layer", "swap"])(
    "one that stays dead at worker.%s is drained: the other commits without it, and it joins again",
    async (point) => {
      const { cluster } = fleet;
      const away = cluster.fault("worker.starting@1-1", "wait");
      const fault = cluster.fault(`worker.${point}@1-1`, "kill");
      const reload = await fleet.submit("v2");
      await fault.hit();
      await away.hit();
      const drained = await cluster.client.drain(cluster.fleet, 1);
      expect(drained.drained_replicas).toEqual([{ replica: 1, state: "out" }]);
      expect((await cluster.ended(reload.reload_id)).state).toBe("committed");
      await cluster.fleetWhere(({ routable, weight_version }) => routable && weight_version === "v2");
      away.release();
      await cluster.fleetWhere(({ drained_replicas }) => drained_replicas.length === 0);
      await fleet.holds("v2");
      const next = fleet.cluster.fault("worker.swap@1-1", "wait");
      const together = await fleet.submit("v1");
      await next.hit();
      next.release();
      await fleet.commits(together, "v1");
      await fleet.goesOn();
    },
  );

  it("the last one that is not drained cannot be drained", async () => {
    const { cluster } = fleet;
    const away = cluster.fault("worker.starting@1-0", "wait");
    process.kill(cluster.pidOf("worker 1/0"), "SIGKILL");
    await away.hit();
    await cluster.client.drain(cluster.fleet, 1);
    await expect(cluster.client.drain(cluster.fleet, 0)).rejects.toMatchObject({ code: "invalid_request" });
    away.release();
    await cluster.fleetWhere(({ drained_replicas }) => drained_replicas.length === 0);
    await fleet.holds("v1");
    await fleet.goesOn();
  });
});
