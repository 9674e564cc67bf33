// A reload's promises without faults, on two ranks.

import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { fetchExport } from "../../orchestrator/cli/export.js";
import { type Cluster, checkpoint, clearFaults, startCluster } from "./cluster.js";

const FP8 = { scheme: "fp8-channel" };

let cluster: Cluster;
beforeAll(async () => {
  cluster = await startCluster({ tp: 2 });
});
afterAll(() => cluster.stop());
beforeEach(() => clearFaults(cluster));

function version(name: "v1" | "v2" | "v3", more: Record<string, unknown> = {}) {
  return { source: checkpoint("tiny-qwen3", name), recipe: FP8, install: { allow_new_layout: true }, ...more };
}

describe("bytes", () => {
  it("a warm reload equals a cold load, and a rollback brings the bytes before it back", async () => {
    const other = await startCluster({ tp: 2 });
    try {
      expect((await other.reload(version("v2"))).state).toBe("committed");
      const cold = await other.exportAll();

      expect((await cluster.reload(version("v1", { weight_version: "one" }))).state).toBe("committed");
      const first = await cluster.exportAll();
      expect((await cluster.reload(version("v2", { weight_version: "two" }))).state).toBe("committed");
      expect(await cluster.exportAll()).toEqual(cold);
      expect(first).not.toEqual(cold);

      const rollback = await cluster.client.rollback(cluster.fleet, {});
      const ended = await cluster.ended(rollback.reload_id);
      expect(ended).toMatchObject({ state: "committed", kind: "rollback", weight_version: "one", live_changed: true });
      expect(await cluster.exportAll()).toEqual(first);
      const fleet = await cluster.client.fleet(cluster.fleet);
      expect(fleet).toMatchObject({
        weight_version: "one",
        routable: true,
        can_roll_back: true,
        rollback_from: "undo",
        rollback_version: "two",
      });
    } finally {
      await other.stop();
    }
  });

  it("in_place equals staged, and leaves the fleet routable", async () => {
    await cluster.reload(version("v2"));
    const staged = await cluster.exportAll();
    await cluster.reload(version("v1"));
    const inPlace = await cluster.reload(version("v2", { install: { mode: "in_place", allow_new_layout: true } }));
    expect(inPlace).toMatchObject({ state: "committed", live_changed: true });
    expect(await cluster.exportAll()).toEqual(staged);
    expect((await cluster.client.fleet(cluster.fleet)).routable).toBe(true);
  });

  it("a rollback to a version whose undo is gone is staged again from its source", async () => {
    await cluster.reload(version("v1", { weight_version: "a" }));
    const first = await cluster.exportAll();
    await cluster.reload(version("v2", { weight_version: "b" }));
    await cluster.reload(version("v3", { weight_version: "c" }));
    const rollback = await cluster.client.rollback(cluster.fleet, {
      to_weight_version: "a",
      expected_weight_version: "c",
    });
    expect((await cluster.ended(rollback.reload_id)).state).toBe("committed");
    expect(await cluster.exportAll()).toEqual(first);
  });

  it("layers_per_job of one gives the same bytes as auto", async () => {
    await cluster.reload(version("v3"));
    const auto = await cluster.exportAll();
    await cluster.reload(version("v1"));
    const single = await cluster.reload(version("v3", { policy: { layers_per_job: 1 } }));
    expect(single.ranks.map((rank) => rank.attempts)).toEqual([7, 7]);
    expect(await cluster.exportAll()).toEqual(auto);
  });
});

describe("submissions", () => {
  it("the same submission twice is one reload; another body under its id is a conflict", async () => {
    const body = version("v1", { submission_id: "twice" });
    const [first, second] = await Promise.all([cluster.submit(body), cluster.submit(body)]);
    expect(second.reload_id).toBe(first.reload_id);
    await expect(cluster.submit({ ...body, weight_version: "other" })).rejects.toMatchObject({
      code: "submission_conflict",
    });
    expect((await cluster.ended(first.reload_id)).state).toBe("committed");
    expect((await cluster.submit(body)).reload_id).toBe(first.reload_id);
  });

  it("two at once go one after the other, and the second says what it waits for", async () => {
    const held = cluster.fault("worker.layer", "wait");
    const first = await cluster.submit(version("v1", { weight_version: "first" }));
    await held.hit();
    const second = await cluster.submit(version("v2", { weight_version: "second" }));
    const waiting = await cluster.client.reload(second.reload_id);
    expect(waiting).toMatchObject({ state: "queued", status: "PENDING" });
    expect(waiting.pending_reason).toContain(first.reload_id);
    held.release();
    const before = await cluster.ended(first.reload_id);
    expect(before.state).toBe("committed");
    const ended = await cluster.ended(second.reload_id);
    expect(ended).toMatchObject({ state: "committed", previous_weight_version: "first", weight_version: "second" });
    expect(ended.epoch).toBe((before.epoch ?? 0) + 1);
  });

  it("a higher priority goes first; coalesce latest supersedes what is not decided", async () => {
    const held = cluster.fault("worker.layer", "wait");
    const running = await cluster.submit(version("v1"));
    await held.hit();
    const low = await cluster.submit(version("v2"));
    const high = await cluster.submit(version("v3", { policy: { priority: 5 } }));
    held.release();
    const [lowEnded, highEnded] = [await cluster.ended(low.reload_id), await cluster.ended(high.reload_id)];
    expect(highEnded.epoch).toBeLessThan(lowEnded.epoch ?? 0);
    expect((await cluster.ended(running.reload_id)).state).toBe("committed");

    const again = cluster.fault("worker.layer", "wait");
    const old = await cluster.submit(version("v1"));
    await again.hit();
    const newest = await cluster.submit(version("v2", { policy: { coalesce: "latest" } }));
    again.release();
    expect(await cluster.ended(old.reload_id)).toMatchObject({
      state: "superseded",
      superseded_by: newest.reload_id,
      live_changed: false,
    });
    expect((await cluster.ended(newest.reload_id)).state).toBe("committed");
  });

  it("a plan that is asked for starts nothing", async () => {
    const before = await cluster.client.reloads({ fleet: cluster.fleet, state: null, limit: 1 });
    const plan = await cluster.client.plan({
      fleet: cluster.fleet,
      source: { kind: "safetensors", uri: checkpoint("tiny-qwen3") },
      recipe: FP8,
    });
    expect(plan.tensor_parallel_size).toBe(2);
    expect(plan.layers.map((layer) => layer.name)).toEqual([
      "model.embed_tokens",
      "model.layers.0",
      "model.layers.1",
      "model.layers.2",
      "model.norm",
      "lm_head",
    ]);
    expect(await cluster.client.reloads({ fleet: cluster.fleet, state: null, limit: 1 })).toEqual(before);
  });

  it("another layout is refused unless it is allowed", async () => {
    await cluster.reload(version("v1"));
    const before = await cluster.exportAll();
    const refused = await cluster.reload({ source: checkpoint("tiny-qwen3"), recipe: { scheme: "none" } });
    expect(refused).toMatchObject({ state: "failed", live_changed: false, error: { code: "layout_changed" } });
    expect(await cluster.exportAll()).toEqual(before);
  });
});

describe("following", () => {
  it("the event stream is replayed from the id that was seen last, and ends with the reload", async () => {
    const { reload_id } = await cluster.reload(version("v2"));
    const all = await collect(null);
    const states = all
      .filter(({ name }) => name === "state")
      .map(({ payload }) => (payload as { state: string }).state);
    expect(states).toEqual(
      ["queued", "planning", "loading", "finalizing", "committing", "committed"].slice(-states.length),
    );
    expect(states.at(-1)).toBe("committed");
    const middle = all[2]?.id ?? "";
    expect(await collect(middle)).toEqual(all.slice(3));
    expect(await collect(all.at(-1)?.id ?? "")).toEqual([]);

    async function collect(after: string | null) {
      const events = [];
      for await (const event of cluster.client.events(reload_id, after, AbortSignal.timeout(5_000))) events.push(event);
      return events;
    }
  });

  it("a long poll answers when the reload ends", async () => {
    const { reload_id } = await cluster.submit(version("v1"));
    const answer = await fetch(`${cluster.client.url}/v1/reloads/${reload_id}?wait=20s`);
    expect(await answer.json()).toMatchObject({ state: "committed", status: "SUCCEEDED" });
  });

  it("the answer tells measured times, bytes and memory of every rank", async () => {
    const reload = await cluster.reload(version("v2"));
    expect(reload.progress).toEqual({ layers_done: 12, layers_total: 12 });
    expect(reload.engine_stopped_ms).toBeGreaterThan(0);
    for (const rank of reload.ranks) {
      expect(rank).toMatchObject({ state: "swapped", layers_done: 6 });
      expect(rank.bytes_read).toBeGreaterThan(1_000_000);
      expect(rank.bytes_written).toBeGreaterThan(500_000);
      expect(rank.peak_memory_bytes).toBeGreaterThan(10_000_000);
    }
    for (const phase of ["queued", "plan", "load", "finalize", "commit", "total"] as const) {
      expect(reload.timing_ms[phase]).not.toBeNull();
    }
  });

  it("an export reaches a host that does not see its file, byte for byte, and is then gone from the rank's", async () => {
    const { client, fleet } = cluster;
    await cluster.reload(version("v1"));
    const made = await client.exportRank(fleet, 0, 1);
    const file = readFileSync(made.path);
    const out = join(cluster.runDir, "from-afar");
    expect(await fetchExport(client, fleet, { ...made, host: "another" }, out)).toBe(out);
    expect(readFileSync(out).equals(file)).toBe(true);
    rmSync(out);
    expect(existsSync(made.path)).toBe(false);
    await client.removeExport(fleet, made.export_id); // once more, as after an answer that was lost
    const read = client.readExport(fleet, made.export_id, 0)[Symbol.asyncIterator]();
    await expect(read.next()).rejects.toMatchObject({ code: "not_found" });
  });

  it("exports leave nothing behind in the rank's directory", async () => {
    await cluster.reload(version("v1"));
    await cluster.export(0);
    const { ranks } = await cluster.client.fleet(cluster.fleet);
    const directory = ranks[0]?.arena_path?.replace("live.safetensors", "exports") ?? "";
    expect(readdirSync(directory)).toEqual([]);
  });

  it("routers learn whether the fleet may be routed to, and at which version", async () => {
    await cluster.reload(version("v1", { weight_version: "41" }));
    const ask = async (query: string) =>
      (await fetch(`${cluster.client.url}/v1/fleets/${cluster.fleet}/routable${query}`)).status;
    expect(await ask("")).toBe(200);
    expect(await ask("?min_weight_version=41")).toBe(200);
    expect(await ask("?min_weight_version=9")).toBe(200);
    expect(await ask("?min_weight_version=42")).toBe(409);
  });
});
