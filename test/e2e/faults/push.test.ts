// Pushes under faults: whoever dies, whatever is sent twice, the weights are whole ones, and the trainer is told what it can know.

import { existsSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";
import type { ReloadView } from "../../../orchestrator/contract/reload.js";
import { type PushSession, pushOfFixture, type Rows } from "../push-session.js";
import { describeFaults, type FaultFleet } from "./fault-fleet.js";
import { askRedis } from "./redis-faults.js";

const V2 = pushOfFixture("tiny-qwen3", "v2");
const BUCKETS = 4;

/** The tensors dealt out like cards: no module is whole before the last bucket. */
const DEALT = Array.from({ length: BUCKETS }, (_, bucket) => V2.names.filter((_name, at) => at % BUCKETS === bucket));

function open(fleet: FaultFleet, source: Record<string, unknown> = {}, more: Record<string, unknown> = {}) {
  const { source: _, ...body } = fleet.body("v2", more);
  return V2.open(fleet.cluster, body, source);
}

async function sendAll(push: PushSession, buckets: readonly (readonly (string | Rows)[])[] = DEALT): Promise<void> {
  for (const bucket of buckets) await push.send(bucket);
}

/** It commits; and then the next good reload, after which the fleet holds v1 again. */
async function commits(fleet: FaultFleet, push: PushSession): Promise<ReloadView> {
  const reload = await fleet.commits(await push.finish(), "v2");
  await fleet.goesOn();
  return reload;
}

describeFaults("a push", { tp: 2 }, (fleet) => {
  it.each([
    ["bucket", "before it takes a bucket"],
    ["layer_running", "while it writes"],
    ["bucket_taken", "between two buckets"],
    ["finalize", "when it has all"],
    ["prepared", "when prepared, its token not handed in"],
    ["swap", "before its swap"],
    ["swapped", "after its swap, which nobody has heard of"],
  ])("whose worker is killed at worker.%s, %s, commits", async (point) => {
    const push = await open(fleet);
    const fault = fleet.cluster.fault(`worker.${point}@0-1`, "kill");
    await sendAll(push);
    await Promise.all([commits(fleet, push), fault.hit()]);
    await push.forgotten();
  });

  it("between whose buckets Redis loses its scripts is consumed bucket by bucket", async () => {
    const push = await open(fleet);
    for (const tensors of DEALT) {
      await push.consumed(await push.send(tensors));
      await askRedis(fleet.cluster, "SCRIPT", "FLUSH");
    }
    await commits(fleet, push);
  });

  it("whose worker dies when a bucket was consumed and its file is gone is served from the spool", async () => {
    const push = await open(fleet);
    const uri = push.write(DEALT[0] ?? []);
    await push.consumed(await push.post(uri));
    writeFileSync(fileURLToPath(uri), "the trainer's again");
    process.kill(fleet.cluster.pidOf("worker 0/1"), "SIGKILL");
    await sendAll(push, DEALT.slice(1));
    await commits(fleet, push);
  });

  it.each(["bucket_accepted", "bucket_spooled", "buckets_sent", "finish"])(
    "whose orchestrator is killed at orchestrator.%s commits",
    async (point) => {
      const push = await open(fleet);
      const fault = fleet.cluster.fault(`orchestrator.${point}`, "kill");
      await sendAll(push);
      await Promise.all([commits(fleet, push), fault.hit()]);
    },
  );

  it("whose job fails a few times goes on where it stopped, and commits", async () => {
    const push = await open(fleet);
    const faults = [0, 1, 2].map((n) => fleet.cluster.fault("worker.layer_running@0-0", "fail", n));
    await sendAll(push);
    await Promise.all([commits(fleet, push), ...faults.map((fault) => fault.hit())]);
  });

  it("every bucket of which is sent twice commits, and none has two numbers", async () => {
    const push = await open(fleet);
    for (const [number, bucket] of DEALT.entries()) {
      expect(await push.send(bucket)).toMatchObject({ bucket: number });
      expect(await push.send(bucket)).toMatchObject({ bucket: number });
    }
    const reload = await commits(fleet, push);
    expect(reload.push?.buckets).toEqual({ accepted: BUCKETS, consumed: BUCKETS, wanted: [] });
  });

  it("one rank of which is slow is consumed when that rank has caught up, not before", async () => {
    const push = await open(fleet);
    const slow = fleet.cluster.fault("worker.bucket@0-1", "wait");
    const first = await push.send(DEALT[0] ?? []);
    await slow.hit();
    await fleet.cluster.until("rank 0/0 to have taken the bucket", async () => {
      const { waiting_for } = await fleet.cluster.client.bucket(push.reload.reload_id, first.bucket, 0);
      return waiting_for.includes("0/0") ? null : true;
    });
    expect(await fleet.cluster.client.bucket(push.reload.reload_id, first.bucket, 0)).toMatchObject({
      state: "pending",
      waiting_for: ["0/1"],
    });
    slow.release();
    expect(await push.consumed(first)).toMatchObject({ state: "consumed", waiting_for: [] });
    await sendAll(push, DEALT.slice(1));
    await commits(fleet, push);
  });

  it("that is cancelled halfway changes nothing live, and is forgotten", async () => {
    const push = await open(fleet);
    await push.consumed(await push.send(DEALT[0] ?? []));
    await fleet.cluster.client.cancel(push.reload.reload_id);
    await expect(push.send(DEALT[1] ?? [])).rejects.toMatchObject({ code: "session_closed" });
    await fleet.holds("v1");
    await push.forgotten();
    await fleet.goesOn();
  });

  it("whose trainer vanishes fails when its idle time is over, and changes nothing live", async () => {
    const push = await open(fleet, { idle_ms: 1_500 });
    await push.consumed(await push.send(DEALT[0] ?? []));
    const reload = await fleet.cluster.ended(push.reload.reload_id);
    expect(reload).toMatchObject({ state: "failed", live_changed: false, error: { code: "deadline_exceeded" } });
    expect(reload.error?.message).toMatch(/the trainer has sent nothing for \d+ ms, .* idle_ms 1500/);
    await fleet.holds("v1");
    await fleet.goesOn();
  });

  it("submitted while another is open waits for its end, and says so", async () => {
    const push = await open(fleet);
    const { source: _, ...body } = fleet.body("v2", { weight_version: "later" });
    const second = await fleet.cluster.client.submit({
      ...body,
      submission_id: `second-${push.reload.reload_id}`,
      source: { kind: "push", config: V2.config },
    });
    expect(second.pending_reason).toContain(`reload_in_progress: waiting for reload ${push.reload.reload_id}`);
    const uri = push.write(DEALT[0] ?? []);
    const early = fleet.cluster.client.postBucket(second.reload_id, { uri, immutable: false });
    await expect(early).rejects.toMatchObject({ code: "backpressure" });
    await fleet.cluster.client.cancel(second.reload_id);
    await sendAll(push);
    await commits(fleet, push);
  });

  it("with a value that is not finite in its last bucket fails whole: nothing live has changed", async () => {
    const bad = pushOfFixture("tiny-qwen3", "v2");
    const name = "model.layers.1.mlp.down_proj.weight";
    const tensor = bad.tensors.get(name);
    tensor?.bytes.set([0x80, 0x7f], 6); // BF16 infinity
    const { source: _, ...body } = fleet.body("v2");
    const push = await bad.open(fleet.cluster, body);
    await push.send(bad.names.filter((one) => one !== name));
    await push.send([name]);
    const reload = await fleet.cluster.ended(push.reload.reload_id);
    expect(reload).toMatchObject({ state: "failed", live_changed: false, error: { code: "non_finite_weights" } });
    expect(reload.error?.message).toContain(`${name}[0, 3] is not finite`);
    await fleet.holds("v1");
    await fleet.goesOn();
  });
});

describeFaults("a push that the trainer retains", { tp: 2 }, (fleet) => {
  const retain = { retain: "trainer" };

  it("asks again for what a rank that died had taken, commits when it is sent again", async () => {
    const push = await open(fleet, retain);
    const first = await push.send(DEALT[0] ?? []);
    await push.consumed(first);
    process.kill(fleet.cluster.pidOf("worker 0/1"), "SIGKILL");
    await fleet.cluster.until("the bucket to be wanted", async () => {
      const reload = await fleet.cluster.client.reload(push.reload.reload_id);
      return reload.push?.buckets.wanted.includes(first.bucket) ? reload : null;
    });
    const { pending_reason } = await fleet.cluster.client.reload(push.reload.reload_id);
    expect(pending_reason).toBe(`waiting for wanted buckets ${first.bucket} to be sent again`);
    expect(await push.send(DEALT[0] ?? [])).toMatchObject({ bucket: first.bucket });
    await sendAll(push, DEALT.slice(1));
    await commits(fleet, push);
  });

  it("fails as source_gone when it is not sent again before the deadline; nothing live has changed", async () => {
    const push = await open(fleet, retain, { policy: { deadline_ms: 6_000 } });
    await push.consumed(await push.send(DEALT[0] ?? []));
    process.kill(fleet.cluster.pidOf("worker 0/1"), "SIGKILL");
    const reload = await fleet.cluster.ended(push.reload.reload_id);
    expect(reload).toMatchObject({ state: "failed", live_changed: false, error: { code: "source_gone" } });
    expect(reload.error?.message).toContain("buckets 0 were needed again and not sent again before the deadline");
    await fleet.holds("v1");
    await fleet.goesOn();
  });

  it("keeps nothing in the spool", async () => {
    const push = await open(fleet, retain);
    await push.consumed(await push.send(DEALT[0] ?? []));
    const spool = join(fleet.cluster.runDir, "spool");
    expect(existsSync(spool) ? readdirSync(spool) : []).toEqual([]);
    await sendAll(push, DEALT.slice(1));
    await commits(fleet, push);
  });
});
