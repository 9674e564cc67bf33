// What must hold when a job fails, a reload is cancelled or late, or a worker ends. Deaths are in faults/.

import { rmSync } from "node:fs";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { Golden } from "../../orchestrator/cli/compare-tensors.js";
import { type Cluster, checkpoint, clearFaults, startCluster } from "./cluster.js";
import { copiedCheckpoint } from "./edit-checkpoint.js";

const QUICK = { attempts: 3, backoff_ms: 1, layers_per_job: 1 };

let cluster: Cluster;
const known: Record<"v1" | "v2", Golden[]> = { v1: [], v2: [] };
beforeAll(async () => {
  cluster = await startCluster({ tp: 2 });
  for (const name of ["v2", "v1"] as const) {
    expect((await cluster.reload(body(name))).state).toBe("committed");
    known[name] = await cluster.exportAll();
  }
});
afterAll(() => cluster.stop());
beforeEach(async () => {
  clearFaults(cluster);
  await cluster.fleetWhere((fleet) => fleet.routable && fleet.active_reload_id === null);
});

function body(name: "v1" | "v2", more: Record<string, unknown> = {}) {
  return { source: checkpoint("tiny-qwen3", name), recipe: { scheme: "fp8-block" }, policy: QUICK, ...more };
}

/** The next reload, to v1 and back to v2's place, must work: nothing may be left over. */
async function commits(name: "v1" | "v2"): Promise<void> {
  expect((await cluster.reload(body(name))).state).toBe("committed");
  expect(await cluster.exportAll()).toEqual(known[name]);
}

describe("a job", () => {
  it("that fails twice and then works commits", async () => {
    const faults = [0, 1].map((n) => cluster.fault("worker.layer@0-1", "fail", n));
    const reload = await cluster.reload(body("v2"));
    for (const fault of faults) await fault.hit();
    expect(reload.state).toBe("committed");
    const attempts = reload.ranks.map((rank) => rank.attempts);
    expect(attempts[1]).toBe((attempts[0] ?? 0) + 2);
    expect(reload.ranks.map((rank) => rank.retries)).toEqual([0, 2]);
    expect(await cluster.exportAll()).toEqual(known.v2);
    await commits("v1");
  });

  it("that fails for good leaves the old weights live on every rank, and says which rank and layer", async () => {
    for (const n of [0, 1, 2, 3, 4, 5]) cluster.fault("worker.layer@0-1", "fail", n); // two layers are tried at once
    const reload = await cluster.reload(body("v2", { policy: { ...QUICK, layers_per_job: "auto" } }));
    expect(reload).toMatchObject({ state: "failed", live_changed: false });
    expect(reload.error?.details).toMatchObject({ replica: 0, rank: 1, attempts: 3, layer: "model.embed_tokens" });
    expect(await cluster.exportAll()).toEqual(known.v1);
    await commits("v1");
  });
});

describe("cancel and deadline", () => {
  it("cancelling while loading ends the reload, and changes nothing", async () => {
    const held = cluster.fault("worker.layer@0-0", "wait");
    const { reload_id } = await cluster.submit(body("v2"));
    await held.hit();
    expect(await cluster.client.cancel(reload_id)).toMatchObject({ state: "cancelled", status: "STOPPED" });
    held.release();
    expect(await cluster.exportAll()).toEqual(known.v1);
    await expect(cluster.client.cancel(reload_id)).rejects.toMatchObject({ code: "not_cancellable" });
    await commits("v2");
    await commits("v1");
  });

  it("a queued reload can be cancelled, and says until then that no rank is there", async () => {
    const { reload_id } = await cluster.submit(body("v2", { fleet: "nobody" }));
    const waiting = await cluster.client.reload(reload_id);
    expect(waiting).toMatchObject({ state: "queued", pending_reason: expect.stringContaining("fleet_incomplete") });
    expect((await cluster.client.cancel(reload_id)).state).toBe("cancelled");
  });

  it("past its deadline a reload fails and says what it waited for", async () => {
    const held = cluster.fault("worker.layer@0-0", "wait");
    const { reload_id } = await cluster.submit(body("v2", { policy: { ...QUICK, deadline_ms: 300 } }));
    await held.hit();
    const ended = await cluster.ended(reload_id);
    held.release();
    expect(ended).toMatchObject({ state: "failed", live_changed: false, error: { code: "deadline_exceeded" } });
    expect(await cluster.exportAll()).toEqual(known.v1);
    await commits("v1");
  });
});

describe("a worker told to end", () => {
  it("drains the job it has, leaves, and its successor takes the reload on", async () => {
    const held = cluster.fault("worker.layer@0-1", "wait");
    const { reload_id } = await cluster.submit(body("v2"));
    await held.hit();
    const [, rank] = (await cluster.client.fleet(cluster.fleet)).ranks;
    process.kill(rank?.pid ?? 0, "SIGTERM");
    held.release();
    expect(await cluster.ended(reload_id)).toMatchObject({ state: "committed" });
    expect(await cluster.exportAll()).toEqual(known.v2);
    await commits("v1");
  });
});

describe("a rank that cannot catch up", () => {
  it("keeps the fleet unroutable with source_gone, until the next commit heals it", async () => {
    const copy = copiedCheckpoint(cluster, "v2");
    expect((await cluster.reload(body("v2", { source: copy.uri }))).state).toBe("committed");
    const [rank] = (await cluster.client.fleet(cluster.fleet)).ranks;
    rmSync(copy.directory, { recursive: true });
    rmSync(rank?.arena_path ?? "");
    process.kill(rank?.pid ?? 0, "SIGKILL");
    await cluster.fleetWhere((fleet) => fleet.not_routable_reason?.startsWith("source_gone") === true);
    await commits("v1");
    expect(await cluster.client.fleet(cluster.fleet)).toMatchObject({ routable: true, torn: false });
  });
});
