// Jobs delivered twice, and late: put into a rank's queue again as they were, during their reload and after it (P6).

import { randomUUID } from "node:crypto";
import { type JobState, Queue } from "bullmq";
import { expect, it } from "vitest";
import { KEY_PREFIX, type RankJob, rankKey, rankQueue } from "../../../orchestrator/contract/jobs.js";
import type { ReloadView } from "../../../orchestrator/contract/reload.js";
import { connectRedis } from "../../../orchestrator/host/redis.js";
import { describeFaults, type FaultFleet } from "./fault-fleet.js";

const KINDS = ["layer", "finalize", "swap"] as const;
type Kind = (typeof KINDS)[number];

/** Delivers jobs of a reload to rank 1 once more, one after the other, and says what became of each. */
async function deliver({ cluster }: FaultFleet, reload: ReloadView, kinds: readonly Kind[]): Promise<JobState[]> {
  const { ranks } = await cluster.client.fleet(cluster.fleet);
  const incarnation = ranks[1]?.incarnation ?? "";
  const key = rankKey(0, 1);
  const connection = connectRedis(cluster.redisUrl, "patient");
  const queue = new Queue<RankJob>(rankQueue(cluster.fleet, key, incarnation), { connection, prefix: KEY_PREFIX });
  const ended: JobState[] = [];
  try {
    for (const kind of kinds) {
      const { fleet, reload_id, epoch } = reload;
      const addressed = { fleet, reload: reload_id, epoch: epoch ?? 0, rank: key, incarnation };
      const retry = { attempts: 3, backoffMs: 1 };
      const job = kind === "layer" ? { kind, layers: [0, 1] } : { kind };
      const opts = { jobId: randomUUID(), attempts: retry.attempts, backoff: { type: "custom", delay: 1 } };
      const { id } = await queue.add(kind, { ...addressed, ...job, retry }, opts);
      ended.push(
        await cluster.until(`the ${kind} job to end`, async () => {
          const state = await queue.getJobState(id ?? "");
          return state === "completed" || state === "failed" ? state : null;
        }),
      );
    }
  } finally {
    await queue.close();
    connection.disconnect();
  }
  return ended;
}

describeFaults("a job delivered twice", { tp: 2 }, (fleet) => {
  it("while its reload loads stages the same bytes: the reload commits", async () => {
    const held = fleet.cluster.fault("worker.finalize@0-1", "wait");
    const { reload_id } = await fleet.submit("v2");
    await held.hit();
    const reload = await fleet.cluster.client.reload(reload_id);
    expect(await deliver(fleet, reload, ["layer", "swap"])).toEqual(["completed", "failed"]);
    await fleet.holds("v1");
    held.release();
    await fleet.commits(reload, "v2");
    await fleet.goesOn();
  });

  it("when its rank is prepared changes nothing live, and a swap is refused: the reload commits", async () => {
    const { cluster } = fleet;
    const held = cluster.fault("worker.prepared@0-1", "wait");
    const { reload_id } = await fleet.submit("v2");
    await held.hit();
    const reload = await cluster.client.reload(reload_id);
    expect(await deliver(fleet, reload, ["swap", "layer"])).toEqual(["failed", "completed"]);
    await fleet.holds("v1");
    held.release();
    await fleet.commits(reload, "v2");
    await fleet.goesOn();
  });

  it("when it is decided swaps once: the reload commits", async () => {
    const { cluster } = fleet;
    const held = cluster.fault("worker.swap@0-1", "wait");
    const { reload_id } = await fleet.submit("v2");
    await held.hit();
    const reload = await cluster.client.reload(reload_id);
    const before = (await cluster.client.fleet(cluster.fleet)).ranks[1]?.arena_generation ?? 0;
    expect(await deliver(fleet, reload, ["layer", "finalize"])).toEqual(["completed", "completed"]);
    const swaps = deliver(fleet, reload, ["swap"]);
    held.release();
    expect(await swaps).toEqual(["completed"]);
    await fleet.commits(reload, "v2");
    expect((await cluster.client.fleet(cluster.fleet)).ranks[1]?.arena_generation).toBe(before + 2);
    await fleet.goesOn();
  });
});

describeFaults("a job delivered late", { tp: 2 }, (fleet) => {
  it("after its reload has ended does nothing", async () => {
    const { reload_id } = await fleet.submit("v2");
    const ended = await fleet.cluster.ended(reload_id);
    await fleet.goesOn();
    const before = await fleet.cluster.client.fleet(fleet.cluster.fleet);
    expect(await deliver(fleet, ended, KINDS)).toEqual(["completed", "completed", "completed"]);
    await fleet.holds("v1");
    expect(await fleet.cluster.client.fleet(fleet.cluster.fleet)).toEqual(before);
    await fleet.goesOn();
  });

  it.each(["layer", "prepared"])(
    "while a newer reload is at worker.%s harms neither that nor what is live",
    async (point) => {
      const { cluster } = fleet;
      const cancelled = cluster.fault("worker.layer@0-1", "wait");
      const { reload_id } = await fleet.submit("v1");
      await cancelled.hit();
      const old = await cluster.client.cancel(reload_id);
      const held = cluster.fault(`worker.${point}@0-1`, "wait", 1);
      cancelled.release();
      const reload = await fleet.submit("v2");
      await held.hit();
      const lines = cluster.lines.length;
      expect(await deliver(fleet, old, KINDS)).toEqual(["completed", "completed", "completed"]);
      expect(cluster.lines.slice(lines).filter((line) => line.includes('"level":40'))).toEqual([]);
      await fleet.holds("v1");
      held.release();
      await fleet.commits(reload, "v2");
      await fleet.goesOn();
    },
  );
});
