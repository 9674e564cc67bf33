// A rank that is lost and does not come back in time. Before the decision its reload fails and nothing live has changed;
// after it there is no way back (P10): the fleet is torn, says so, and the next commit heals it.

import { expect, it } from "vitest";
import { describeFaults } from "./fault-fleet.js";

describeFaults("a rank lost", { tp: 2 }, (fleet) => {
  it.each(["layer", "prepared"])("before the decision (worker.%s) fails the reload at its deadline", async (point) => {
    const { cluster } = fleet;
    const away = cluster.fault("worker.starting@0-1", "wait");
    const lost = cluster.fault(`worker.${point}@0-1`, "kill");
    const { reload_id } = await fleet.submit("v2", { policy: { deadline_ms: 700 } });
    await lost.hit();
    expect(await cluster.ended(reload_id)).toMatchObject({
      state: "failed",
      live_changed: false,
      error: { code: "deadline_exceeded", details: { waited_for_ranks: ["0/1"] } },
    });
    away.release();
    await fleet.holds("v1");
    await fleet.goesOn();
  });

  it.each(["swap", "exchanged"])(
    "after the decision (worker.%s) tears the fleet, and the next commit heals it",
    async (point) => {
      const { cluster } = fleet;
      const away = cluster.fault("worker.starting@0-1", "wait");
      const lost = cluster.fault(`worker.${point}@0-1`, "kill");
      const { reload_id } = await fleet.submit("v2", { policy: { heal_ms: 300 } });
      await lost.hit();
      await away.hit();
      expect(await cluster.ended(reload_id)).toMatchObject({
        state: "failed",
        live_changed: true,
        error: { code: "fleet_torn", details: { cause: { code: "deadline_exceeded" } } },
      });
      const torn = { routable: false, torn: true, not_routable_reason: expect.stringContaining("fleet_torn") };
      expect(await cluster.client.fleet(cluster.fleet)).toMatchObject(torn);
      const healing = await fleet.submit("v1");
      away.release();
      await fleet.commits(healing, "v1");
      await fleet.goesOn();
    },
  );

  it("after the decision, and back when its fleet is torn, does not make it routable by itself", async () => {
    const { cluster } = fleet;
    const away = cluster.fault("worker.starting@0-1", "wait");
    const lost = cluster.fault("worker.swap@0-1", "kill");
    const { reload_id } = await fleet.submit("v2", { policy: { heal_ms: 300 } });
    await lost.hit();
    expect((await cluster.ended(reload_id)).error?.code).toBe("fleet_torn");
    away.release();
    await cluster.fleetWhere(({ ranks }) => ranks[1]?.alive === true && ranks[1].pid === cluster.pidOf("worker 0/1"));
    const torn = await cluster.client.fleet(cluster.fleet);
    expect(torn).toMatchObject({ routable: false, torn: true });
    expect(torn.ranks.map((rank) => rank.weight_version)).toEqual(["v2", "v1"]);
    await fleet.goesOn();
  });
});
