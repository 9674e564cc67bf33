// Redis that is there and does not serve: it stands still for ten seconds, takes no writes, or is full. What cannot be
// recorded does not happen; once it serves again the reload goes on.

import { setTimeout as delay } from "node:timers/promises";
import { expect, it } from "vitest";
import { everyOther } from "../../deep.js";
import { describeFaults } from "./fault-fleet.js";
import { askRedis, redisPid } from "./redis-faults.js";

const STAGES = { layer: "loading", prepared: "finalizing", swap: "committing" };
const AWAY_MS = 10_000;
const REFUSING_MS = 1_000;

describeFaults("Redis unreachable for ten seconds", { tp: 2 }, (fleet) => {
  it.each(everyOther(Object.entries(STAGES)))(
    "while a rank is at worker.%s (%s): the reload commits",
    async (point) => {
      const held = fleet.cluster.fault(`worker.${point}@0-1`, "wait");
      const reload = await fleet.submit("v2");
      await held.hit();
      const pid = await redisPid(fleet.cluster);
      process.kill(pid, "SIGSTOP");
      try {
        held.release();
        await delay(AWAY_MS);
      } finally {
        process.kill(pid, "SIGCONT");
      }
      await fleet.commits(reload, "v2");
      await fleet.goesOn();
    },
  );
});

const REFUSALS = {
  "takes no writes": { begin: ["REPLICAOF", "127.0.0.1", "1"], end: ["REPLICAOF", "NO", "ONE"] },
  "is full": { begin: ["CONFIG", "SET", "maxmemory", "1"], end: ["CONFIG", "SET", "maxmemory", "0"] },
};
type Command = [string, ...string[]];
const CASES = Object.entries(REFUSALS).flatMap(([how, { begin, end }]) =>
  Object.entries(STAGES).map(([point, state]) => [how, point, state, begin as Command, end as Command] as const),
);
/** Of all processes together, in the second that it lasts. */
const MOST_LINES = 30;

describeFaults("Redis that has lost its scripts, behind connections that stay", { tp: 2 }, (fleet) => {
  it("reloads, rollbacks and pushes go on as before", async () => {
    const { cluster } = fleet;
    await fleet.commits(await fleet.submit("v1"), "v1");
    await askRedis(cluster, "SCRIPT", "FLUSH");
    await fleet.commits(await fleet.submit("v2"), "v2");
    await askRedis(cluster, "SCRIPT", "FLUSH");
    expect(await cluster.cli("rollback", "--url", cluster.client.url, "--wait")).toMatchObject({ code: 0 });
    await askRedis(cluster, "SCRIPT", "FLUSH");
    await fleet.goesOn();
  });
});

describeFaults("Redis that refuses", { tp: 2 }, (fleet) => {
  it.each(everyOther(CASES, 1))(
    "%s while a rank is at worker.%s (%s): the reload commits",
    async (_, point, _state, begin, end) => {
      const { cluster } = fleet;
      const { source } = fleet.body("v1");
      const held = cluster.fault(`worker.${point}@0-1`, "wait");
      const reload = await fleet.submit("v2");
      await held.hit();
      await askRedis(cluster, ...begin);
      const before = cluster.lines.length;
      try {
        held.release();
        await delay(REFUSING_MS);
        const refused = cluster.client.submit({ source: { kind: "safetensors", uri: source } });
        expect(await cluster.client.ready()).toBe(false);
        await expect(refused).rejects.toMatchObject({ code: "redis_unavailable" });
      } finally {
        await askRedis(cluster, ...end);
      }
      const refusals = cluster.lines.slice(before);
      expect(cluster.lines.some((line) => /Waiting for Redis at .*(READONLY|OOM command)/.test(line))).toBe(true);
      expect(refusals.length).toBeLessThan(MOST_LINES);
      await fleet.commits(reload, "v2");
      await fleet.goesOn();
    },
  );
});
