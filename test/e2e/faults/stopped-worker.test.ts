// A worker that stands still and goes on later: nobody else holds its arena before it is dead (P9), and what it does late is
// what it would have done in time.

import { once } from "node:events";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { isAlive } from "../cluster.js";
import { startWorker } from "../more-processes.js";
import { describeFaults, type FaultFleet } from "./fault-fleet.js";

/** Who holds rank 1's arena, by the lock that the kernel keeps. */
function holder({ cluster }: FaultFleet): number {
  return Number.parseInt(readFileSync(join(cluster.runDir, cluster.fleet, "replica-0", "rank-1", "lock"), "utf8"), 10);
}

/** Resolves when the arena has the new holder; in that very moment the one before is dead. */
async function takenOver(fleet: FaultFleet, from: number): Promise<void> {
  await fleet.cluster.until("the arena to be taken over", async () => {
    if (holder(fleet) === from) return null;
    expect(isAlive(from)).toBe(false);
    return true;
  });
}

describeFaults("a worker that stands still while its replacement starts", { tp: 2 }, (fleet) => {
  it.each(["layer", "swap_begun"])("at worker.%s is dead before the other holds its arena", async (point) => {
    const stopped = fleet.cluster.fault(`worker.${point}@0-1`, "stop");
    const reload = await fleet.submit("v2");
    const old = await stopped.hit();
    const replacement = startWorker(fleet.cluster, 1, "--take-over");
    try {
      await takenOver(fleet, old);
      await fleet.commits(reload, "v2");
    } finally {
      await replacement.end();
    }
    await fleet.goesOn();
  });

  it("and goes on while the other waits for it, is dead before the other holds its arena", async () => {
    const { cluster } = fleet;
    const held = cluster.fault("worker.layer@0-1", "wait");
    const reload = await fleet.submit("v2");
    const old = await held.hit();
    process.kill(old, "SIGSTOP");
    const replacement = startWorker(cluster, 1);
    try {
      const asked = () =>
        cluster.lines.some((line) => line.includes("ending the process") && line.includes(`"holder":{"pid":${old},`));
      await cluster.until("the replacement to ask", async () => asked() || null);
      process.kill(old, "SIGCONT");
      await takenOver(fleet, old);
      await fleet.commits(reload, "v2");
    } finally {
      await replacement.end();
    }
    await fleet.goesOn();
  });
});

describeFaults("a worker that is alive", { tp: 2 }, (fleet) => {
  it.each([
    ["its arena when another is started for its rank", []],
    ["its rank when another is started for it with another directory", ["--run-dir", "other"]],
  ])("keeps %s, and that one says what to do", async (_, [flag, name]) => {
    const { cluster } = fleet;
    const pid = cluster.pidOf("worker 0/1");
    cluster.lines.length = 0;
    const second = startWorker(cluster, 1, ...(flag && name ? [flag, join(cluster.directory, name)] : []));
    await once(second.child, "exit");
    expect(second.child.exitCode).toBe(2);
    expect(cluster.lines.some((line) => line.includes(`Worker process ${pid}`) && line.includes("--take-over"))).toBe(
      true,
    );
    expect([cluster.pidOf("worker 0/1"), isAlive(pid)]).toEqual([pid, true]);
    expect((await cluster.client.fleet(cluster.fleet)).routable).toBe(true);
  });
});

describeFaults("a worker that stands still past its lease", { tp: 2 }, (fleet) => {
  it.each(["prepared", "swap_begun"])("at worker.%s goes on, and the reload commits", async (point) => {
    const { cluster } = fleet;
    const stopped = cluster.fault(`worker.${point}@0-1`, "stop");
    const reload = await fleet.submit("v2");
    const pid = await stopped.hit();
    try {
      await cluster.fleetWhere(({ ranks, routable }) => ranks[1]?.alive === false && !routable);
      expect((await cluster.client.reload(reload.reload_id)).finished_at).toBeNull();
    } finally {
      process.kill(pid, "SIGCONT");
    }
    await fleet.commits(reload, "v2");
    expect(cluster.pidOf("worker 0/1")).toBe(pid);
    await fleet.goesOn();
  });

  it("while nothing runs makes the fleet unroutable until it goes on", async () => {
    const { cluster } = fleet;
    const pid = cluster.pidOf("worker 0/0");
    process.kill(pid, "SIGSTOP");
    try {
      await cluster.fleetWhere(({ ranks, routable }) => ranks[0]?.alive === false && !routable);
    } finally {
      process.kill(pid, "SIGCONT");
    }
    await fleet.holds("v1");
    await fleet.goesOn();
  });
});
