// Rollback as a reload (P11): from undo where a rank has it, from the source where it does not, and refused before anything
// changes where there is neither.

import { rmSync } from "node:fs";
import { expect, it } from "vitest";
import { copiedCheckpoint } from "../edit-checkpoint.js";
import { describeFaults, type FaultFleet } from "./fault-fleet.js";

async function rollBack({ cluster }: FaultFleet, version?: string) {
  return cluster.client.rollback(cluster.fleet, version === undefined ? {} : { to_weight_version: version });
}

/** Which ranks have read a source for it. */
async function readers({ cluster }: FaultFleet, id: string): Promise<number[]> {
  const { ranks } = await cluster.client.reload(id);
  return ranks.filter((rank) => rank.bytes_read > 0).map((rank) => rank.rank);
}

async function killAndAwait({ cluster }: FaultFleet, rank: number): Promise<void> {
  const old = cluster.pidOf(`worker 0/${rank}`);
  process.kill(old, "SIGKILL");
  await cluster.fleetWhere(({ ranks, routable }) => routable && ranks[rank]?.pid !== old);
}

describeFaults("a rollback", { tp: 2 }, (fleet) => {
  it("to the named version before is adopted from undo on every rank, without a byte read", async () => {
    await fleet.commits(await fleet.submit("v2"), "v2");
    const rollback = await rollBack(fleet, "v1");
    await fleet.commits(rollback, "v1");
    expect(await readers(fleet, rollback.reload_id)).toEqual([]);
    const back = await rollBack(fleet);
    await fleet.commits(back, "v2");
    expect(await readers(fleet, back.reload_id)).toEqual([]);
    await fleet.goesOn();
  });

  it("with one rank's undo lost stages there from the source", async () => {
    await fleet.commits(await fleet.submit("v2"), "v2");
    await killAndAwait(fleet, 1);
    const rollback = await rollBack(fleet, "v1");
    await fleet.commits(rollback, "v1");
    expect(await readers(fleet, rollback.reload_id)).toEqual([1]);
    await fleet.goesOn();
  });

  it.each(["prepared", "swap", "exchanged"])("with a worker killed at worker.%s commits", async (point) => {
    await fleet.commits(await fleet.submit("v2"), "v2");
    const fault = fleet.cluster.fault(`worker.${point}@0-1`, "kill");
    const rollback = await rollBack(fleet, "v1");
    await fault.hit();
    await fleet.commits(rollback, "v1");
    await fleet.goesOn();
  });

  it("cancelled before the decision leaves undo as undo", async () => {
    const { cluster } = fleet;
    await fleet.commits(await fleet.submit("v2"), "v2");
    const held = cluster.fault("worker.prepared@0-1", "wait");
    const cancelled = await rollBack(fleet, "v1");
    await held.hit();
    expect((await cluster.client.cancel(cancelled.reload_id)).state).toBe("cancelled");
    held.release();
    await fleet.holds("v2");
    const rollback = await rollBack(fleet, "v1");
    await fleet.commits(rollback, "v1");
    expect(await readers(fleet, rollback.reload_id)).toEqual([]);
    await fleet.goesOn();
  });

  it("whose source is gone on a rank without undo fails before anything changes, and names the rank", async () => {
    const { cluster } = fleet;
    const copy = copiedCheckpoint(cluster, "v2");
    const gone = await fleet.submit("v2", { source: copy.uri, weight_version: "gone" });
    expect((await cluster.ended(gone.reload_id)).state).toBe("committed");
    await fleet.commits(await fleet.submit("v1"), "v1");
    rmSync(copy.directory, { recursive: true });
    await killAndAwait(fleet, 1);
    expect(await cluster.client.fleet(cluster.fleet)).toMatchObject({ can_roll_back: false, rollback_from: null });
    const rollback = await rollBack(fleet, "gone");
    const ended = await cluster.ended(rollback.reload_id);
    expect(ended).toMatchObject({ state: "failed", live_changed: false, error: { code: "nothing_to_roll_back" } });
    expect(ended.error?.message).toContain("0/1");
    await fleet.holds("v1");
    await fleet.goesOn();
  });

  it("to a version that never was is refused at once", async () => {
    await expect(rollBack(fleet, "never")).rejects.toMatchObject({ code: "nothing_to_roll_back" });
    await fleet.holds("v1");
  });
});
