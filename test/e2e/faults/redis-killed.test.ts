// Redis killed under a reload. With its append-only file nothing is lost; without it the ranks say what they hold, and the
// fleet goes on from there (P13).

import { expect, it } from "vitest";
import { describeFaults } from "./fault-fleet.js";
import { killRedis, makeRedisForget } from "./redis-faults.js";

const STAGES = {
  layer: "loading",
  finalize: "finalizing",
  prepared: "finalizing",
  swap: "committing",
  exchanged: "committing",
};

describeFaults("Redis killed", { tp: 2 }, (fleet) => {
  it.each(Object.entries(STAGES))("while a rank is at worker.%s (%s): the reload commits", async (point) => {
    const held = fleet.cluster.fault(`worker.${point}@0-1`, "wait");
    const reload = await fleet.submit("v2");
    await held.hit();
    await killRedis(fleet.cluster);
    held.release();
    await fleet.commits(reload, "v2");
    await fleet.goesOn();
  });

  it("three times in one reload: the reload commits", async () => {
    const points = ["layer", "finalize", "swap"];
    const held = points.map((point) => fleet.cluster.fault(`worker.${point}@0-1`, "wait"));
    const reload = await fleet.submit("v2");
    for (const fault of held) {
      await fault.hit();
      await killRedis(fleet.cluster);
      fault.release();
    }
    await fleet.commits(reload, "v2");
    await fleet.goesOn();
  });
});

describeFaults("Redis killed, its file lost", { tp: 2 }, (fleet) => {
  const epoch = async () => (await fleet.cluster.client.fleet(fleet.cluster.fleet)).epoch;

  it("while nothing runs: the same weights are routable again, and the next epoch is higher", async () => {
    const before = await epoch();
    await makeRedisForget(fleet.cluster);
    await fleet.holds("v1");
    expect(await epoch()).toBe(before);
    await fleet.goesOn();
    expect(await epoch()).toBe(before + 1);
  });

  it.each(["layer", "prepared"])("while a rank is at worker.%s: nothing live changes", async (point) => {
    const held = fleet.cluster.fault(`worker.${point}@0-1`, "wait");
    const { reload_id } = await fleet.submit("v2");
    await held.hit();
    await makeRedisForget(fleet.cluster);
    held.release();
    await fleet.holds("v1");
    await expect(fleet.cluster.client.reload(reload_id)).rejects.toMatchObject({ code: "not_found" });
    await fleet.goesOn();
  });

  it("when one rank has swapped and the other has not: what one shows was decided, so all show it", async () => {
    const { cluster } = fleet;
    const held = cluster.fault("worker.swap@0-1", "wait");
    const { epoch: decided } = await fleet.submit("v2");
    await held.hit();
    await cluster.fleetWhere(({ ranks }) => ranks[0]?.weight_version === "v2");
    await makeRedisForget(cluster);
    held.release();
    await fleet.holds("v2");
    expect(await epoch()).toBe(decided);
    await fleet.goesOn();
  });

  it("and every worker with it: each takes up its own arena, and the same weights are routable again", async () => {
    const { cluster } = fleet;
    const before = await epoch();
    const pids = [cluster.pidOf("worker 0/0"), cluster.pidOf("worker 0/1")];
    for (const pid of pids) process.kill(pid, "SIGKILL");
    await makeRedisForget(cluster);
    await fleet.holds("v1");
    expect(await epoch()).toBe(before);
    expect(pids).not.toContain(cluster.pidOf("worker 0/1"));
    await fleet.goesOn();
  });

  it("and a worker within its swap: its bytes are neither version's, and only the next commit heals that", async () => {
    const { cluster } = fleet;
    const held = cluster.fault("worker.swap_begun@0-1", "wait");
    await fleet.submit("v2");
    const pid = await held.hit();
    await makeRedisForget(cluster);
    process.kill(pid, "SIGKILL");
    await cluster.fleetWhere((view) => view.not_routable_reason?.startsWith("source_gone") === true);
    await fleet.goesOn();
  });
});
