// Pushes on a real fleet: what a trainer sends becomes what a pull makes of the same checkpoint, in memory that is measured and
// bounded; some modules can be changed alone, and taken back.

import { existsSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Golden } from "../../orchestrator/cli/compare-tensors.js";
import type { RankPush } from "../../orchestrator/contract/push.js";
import type { ReloadView } from "../../orchestrator/contract/reload.js";
import { type Cluster, checkpoint, startCluster } from "./cluster.js";
import { type PushSession, pushOfFixture } from "./push-session.js";

const V1 = pushOfFixture("tiny-qwen3", "v1");
const V2 = pushOfFixture("tiny-qwen3", "v2");
const NEW_LAYOUT = { install: { allow_new_layout: true } };
const layer0 = (name: string) => `model.layers.0.${name}.weight`;
const QKV = ["q_proj", "k_proj", "v_proj"].map((name) => layer0(`self_attn.${name}`));
const GATE_UP = ["gate_proj", "up_proj"].map((name) => layer0(`mlp.${name}`));
/** Tensors of modules of one tensor, so that none waits for another. */
const without = (...names: string[]) => V2.names.filter((name) => !names.includes(name));

let cluster: Cluster;
/** Of rank 0 after a pull of v1. */
let digestOfV1: string;
/** By version: what each rank holds after a pull with fp8-tensor. */
const pulled = new Map<string, Golden[]>();

beforeAll(async () => {
  cluster = await startCluster({ tp: 2 });
  for (const version of ["v2", "v1"]) {
    await pull(version);
    pulled.set(version, await cluster.exportAll());
  }
  digestOfV1 = liveDigest(0);
});
afterAll(() => cluster.stop());

/** The control page's digest of a rank's live bytes (docs/arena-format.md). */
function liveDigest(rank: number): string {
  const page = readFileSync(join(cluster.runDir, cluster.fleet, "replica-0", `rank-${rank}`, "control"));
  return page.subarray(DIGEST_OFFSET, DIGEST_OFFSET + 8).toString("hex");
}

async function pull(version: string): Promise<void> {
  const body = { source: checkpoint("tiny-qwen3", version), recipe: { scheme: "fp8-tensor" }, ...NEW_LAYOUT };
  expect(await cluster.reload({ ...body, weight_version: version })).toMatchObject({ state: "committed" });
}

/** Where the control page has it. */
const DIGEST_OFFSET = 336;
const FP8 = { recipe: { scheme: "fp8-tensor" } };

async function committed(push: PushSession): Promise<ReloadView> {
  const reload = await push.finish();
  expect(reload.error).toBeNull();
  expect(reload.state).toBe("committed");
  return reload;
}

/** What rank 0 says of the push once it has taken so many buckets. */
function takenBy0(push: PushSession, buckets: number): Promise<RankPush> {
  return cluster.until(`rank 0 to have taken ${buckets} buckets`, async () => {
    const { ranks } = await cluster.client.reload(push.reload.reload_id);
    const shown = ranks.find(({ rank }) => rank === 0)?.push ?? null;
    return shown !== null && shown.buckets_taken >= buckets ? shown : null;
  });
}

describe("what is pushed", () => {
  it("is what a pull makes of it, first into an arena of its own, then over what stands", async () => {
    for (const [version, tensors] of [
      ["v2", V2],
      ["v1", V1],
    ] as const) {
      const push = await tensors.open(cluster, { ...FP8, ...NEW_LAYOUT });
      await push.send(tensors.names);
      await committed(push);
      expect(await cluster.exportAll()).toEqual(pulled.get(version));
    }
  });

  it("in place is what a pull makes of it", async () => {
    const push = await V2.open(cluster, { ...FP8, install: { mode: "in_place" } });
    await push.send(without(...GATE_UP));
    await push.send(GATE_UP);
    await committed(push);
    expect(await cluster.exportAll()).toEqual(pulled.get("v2"));
  });

  it("needs no list of tensors where the config says all", async () => {
    await pull("v1");
    const push = await V2.open(cluster, FP8, { tensors: undefined });
    await push.send(V2.names);
    await committed(push);
    expect(await cluster.exportAll()).toEqual(pulled.get("v2"));
  });

  it("may be the trainer's memory again once it is consumed: what is written there then does no harm", async () => {
    await pull("v1");
    const push = await V2.open(cluster, FP8);
    for (const names of [QKV.slice(0, 1), without(...QKV), QKV.slice(1)]) {
      const uri = push.write(names);
      await push.consumed(await push.post(uri));
      writeFileSync(fileURLToPath(uri), "other bytes");
    }
    await committed(push);
    expect(await cluster.exportAll()).toEqual(pulled.get("v2"));
  });

  it("is not finished while rows are missing: they are named, and the push goes on", async () => {
    const push = await V2.open(cluster, FP8);
    const [lacking = "", partly = ""] = QKV;
    const rows = V2.tensors.get(partly)?.shape[0] ?? 0;
    await push.send([...without(lacking, partly), { name: partly, from: 0, to: rows - 3 }]);
    const early = cluster.client.finish(push.reload.reload_id);
    await expect(early).rejects.toMatchObject({ code: "tensor_missing", details: { count: 2 } });
    await expect(early).rejects.toThrow(`2 tensors have not been sent, or not whole: ${lacking}, 3 rows of ${partly}`);
    await push.send([lacking, { name: partly, from: rows - 3, to: rows }]);
    await committed(push);
  });

  it("is listed module by module, with how much has come", async () => {
    const push = await V2.open(cluster, FP8);
    await push.send(QKV.slice(0, 2));
    const { tensors } = await cluster.client.expectedTensors(push.reload.reload_id);
    expect(tensors.map(({ name }) => name).sort()).toEqual([...V2.names].sort());
    const at = tensors.findIndex(({ name }) => name === QKV[0]);
    expect(tensors.slice(at, at + 3).map(({ name }) => name)).toEqual(QKV);
    expect(tensors.slice(at, at + 3).map(({ rows_received }) => rows_received > 0)).toEqual([true, true, false]);
    expect(tensors[at]?.modules).toEqual(["model.layers.0.self_attn.qkv_proj"]);
    await cluster.client.cancel(push.reload.reload_id);
  });
});

describe("memory of modules that are not complete", () => {
  it("is measured, is that of the rank's part alone, and is given back when the module is written", async () => {
    const push = await V2.open(cluster, FP8);
    await push.send(QKV.slice(0, 2));
    const { buffers, paths } = await takenBy0(push, 1);
    const bytes = QKV.slice(0, 2).reduce((sum, name) => sum + (V2.tensors.get(name)?.bytes.byteLength ?? 0), 0) / 2;
    const module = { module: "model.layers.0.self_attn.qkv_proj", host_bytes: bytes, device_bytes: 0 };
    expect(buffers).toMatchObject({ modules: [module], module_count: 1, device_bytes: 0 });
    expect(buffers.host_bytes).toBeGreaterThanOrEqual(bytes);
    expect(buffers.host_bytes).toBeLessThan(bytes + 3 * 4096);
    expect(paths).toEqual({ whole: 0, streamed: 0, buffered: 1 });
    await push.send(QKV.slice(2));
    const after = await takenBy0(push, 2);
    expect(after.buffers).toMatchObject({ host_bytes: 0, modules: [], peak_host_bytes: buffers.host_bytes });
    await push.send(without(...QKV));
    const reload = await committed(push);
    expect(reload.warnings).toEqual([]);
    expect(reload.ranks.map(({ push: shown }) => shown?.buffers.host_bytes)).toEqual([0, 0]);
  });

  it("is not needed at all where rows are written by themselves", async () => {
    const push = await V2.open(cluster, { recipe: { scheme: "fp8-channel" }, ...NEW_LAYOUT });
    for (const name of V2.names) await push.send([name]);
    const { ranks, warnings } = await committed(push);
    for (const { push: shown } of ranks) {
      expect(shown?.buffers.peak_host_bytes).toBe(0);
      expect(shown?.paths.buffered).toBe(0);
      expect(shown?.paths.streamed).toBeGreaterThan(0);
    }
    expect(warnings).toEqual([]);
    await pull("v1");
  });

  it.each(["cancelled", "failed"])("is given back when the push is %s", async (how) => {
    const bad = pushOfFixture("tiny-qwen3", "v2");
    bad.tensors.get(GATE_UP[0] ?? "")?.bytes.set([0x80, 0x7f]); // BF16 infinity
    const push = await bad.open(cluster, FP8);
    await push.consumed(await push.send(QKV.slice(0, 2)));
    const worker = cluster.pidOf("worker 0/0");
    expect(buffersOf(worker)).toBe(1);
    if (how === "cancelled") await cluster.client.cancel(push.reload.reload_id);
    else await push.send(GATE_UP);
    expect(await cluster.ended(push.reload.reload_id)).toMatchObject({ state: how, live_changed: false });
    await cluster.until("the buffers to be closed", async () => (buffersOf(worker) === 0 ? true : null));
    expect(cluster.pidOf("worker 0/0")).toBe(worker);
    expect(await cluster.exportAll()).toEqual(pulled.get("v1"));
  });
});

/** How many buffers a process has open. */
function buffersOf(pid: number): number {
  const paths = readdirSync(`/proc/${pid}/fd`).map((fd) => {
    try {
      return readlinkSync(`/proc/${pid}/fd/${fd}`);
    } catch {
      return ""; // closed meanwhile
    }
  });
  return paths.filter((path) => path.startsWith("/memfd:layercast-buffers")).length;
}

describe("the warning about the order of tensors", () => {
  const outOfOrder = ({ warnings }: ReloadView) => warnings.filter(({ code }) => code === "out_of_order");

  it("comes once with the ranks that say it, however often two modules fill at the same time, with megabytes and modules", async () => {
    const push = await V2.open(cluster, FP8);
    for (const name of [QKV[0], GATE_UP[0], QKV[1], GATE_UP[1], QKV[2]] as string[]) await push.send([name]);
    await push.send(without(...QKV, ...GATE_UP));
    const reload = await committed(push);
    const warnings = outOfOrder(reload);
    expect(warnings.map(({ details }) => details.ranks)).toEqual([["0/0", "0/1"]]);
    for (const { message, details } of warnings) {
      expect(details.modules).toEqual(["model.layers.0.mlp.gate_up_proj", "model.layers.0.self_attn.qkv_proj"]);
      expect(message).toMatch(
        /^\d+\.\d MB of 2 modules that are filled at the same time wait in a rank's buffers: model\.layers\.0\./,
      );
      expect(message).toContain("Send tensors grouped by module to avoid it.");
    }
    const told = await eventsOf(reload.reload_id);
    expect(told.filter(({ name }) => name === "warning")).toHaveLength(1);
    const buckets = told.filter(({ name }) => name === "bucket").map(({ payload }) => payload as { bucket: number });
    expect(buckets.sort((a, b) => a.bucket - b.bucket)).toEqual(
      Array.from({ length: 6 }, (_, bucket) => ({ bucket, state: "consumed" })),
    );
  });

  it.each([
    [
      "modules come one after the other",
      () => [QKV.slice(0, 2), QKV.slice(2), GATE_UP.slice(0, 1), GATE_UP.slice(1)],
      {},
    ],
    ["one module alone waits", () => [QKV.slice(0, 1), without(...QKV), QKV.slice(1)], {}],
    ["each bucket completes what it begins", () => [[...QKV, ...GATE_UP]], {}],
    ["the trainer interleaves on purpose, below its threshold", () => [["q", "gate"]], { warn_buffer_bytes: 2 ** 40 }],
    ["a padded vocabulary is sent in parts between others", () => [["rows of embed"], QKV.slice(0, 1)], {}],
  ] as const)("does not come when %s", async (_, buckets, source) => {
    const push = await V2.open(cluster, FP8, source);
    const sent = new Set<string>();
    const embed = "model.embed_tokens.weight";
    const rows = V2.tensors.get(embed)?.shape[0] ?? 0;
    for (const bucket of buckets()) {
      if (bucket[0] === "rows of embed") await push.send([{ name: embed, from: 1, to: rows }]);
      else await push.send(nameAll(bucket, sent));
    }
    if (
      buckets()
        .flat()
        .includes("rows of embed" as never)
    ) {
      sent.add(embed);
      await push.send([{ name: embed, from: 0, to: 1 }]);
    }
    const left = without(...sent);
    if (left.length > 0) await push.send(left);
    expect(outOfOrder(await committed(push))).toEqual([]);
  });

  it("does not come for attention, which waits for finalize whatever the order", async () => {
    const moe = pushOfFixture("tiny-deepseek-v2", "v1");
    const push = await moe.open(cluster, { ...FP8, ...NEW_LAYOUT });
    const scales = moe.names.filter((name) => name.endsWith("kv_scale"));
    expect(scales.length).toBeGreaterThan(0);
    await push.send(scales);
    await push.send(moe.names.filter((name) => !scales.includes(name)));
    const reload = await committed(push);
    expect(outOfOrder(reload)).toEqual([]);
    await pull("v1");
  });
});

function nameAll(bucket: readonly string[], sent: Set<string>): string[] {
  const short: Record<string, string | undefined> = { q: QKV[0], gate: GATE_UP[0] };
  const names = bucket.map((name) => short[name] ?? name);
  for (const name of names) sent.add(name);
  return names;
}

async function eventsOf(id: string): Promise<{ name: string; payload: unknown }[]> {
  const events: { name: string; payload: unknown }[] = [];
  for await (const event of cluster.client.events(id, null, AbortSignal.timeout(10_000))) {
    events.push({ name: event.name, payload: event.payload });
  }
  return events;
}

describe("max_buffer_bytes", () => {
  /** Of rank 0: half of q, k and v. */
  const qkvBytes = QKV.reduce((sum, name) => sum + (V2.tensors.get(name)?.bytes.byteLength ?? 0), 0) / 2;

  it("makes buckets wait until a module that fills has made room, and holds no more than that", async () => {
    const limit = Math.ceil(qkvBytes / 4096) * 4096;
    const push = await V2.open(cluster, FP8, { max_buffer_bytes: limit });
    const waiting: string[] = [];
    await push.send(QKV.slice(0, 2));
    await takenBy0(push, 1);
    for (const layer of [1, 2]) waiting.push(`model.layers.${layer}.mlp.gate_proj.weight`);
    for (const name of waiting) await push.send([name]);
    await push.send(QKV.slice(2));
    await push.send(without(...QKV, ...waiting));
    const { ranks } = await committed(push);
    for (const { push: shown } of ranks) expect(shown?.buffers.peak_host_bytes).toBeLessThanOrEqual(limit);
    expect(await cluster.exportAll()).toEqual(pulled.get("v2"));
    await pull("v1");
  });

  it("fails, saying what to do, when only buckets that wait could make room; nothing live has changed", async () => {
    const push = await V2.open(cluster, FP8, { max_buffer_bytes: 8192 });
    await push.send([...QKV.slice(0, 2), GATE_UP[0] ?? ""]);
    const reload = await cluster.ended(push.reload.reload_id);
    expect(reload).toMatchObject({ state: "failed", live_changed: false, error: { code: "buffers_full" } });
    expect(reload.error?.message).toMatch(/max_buffer_bytes is 8192, .*Send tensors grouped by module, or allow more/);
    expect(await cluster.exportAll()).toEqual(pulled.get("v1"));
  });
});

describe("a partial push", () => {
  const PARTIAL = { partial: true };
  const module = (index: number) => `model.layers.0.${["self_attn.qkv_proj", "mlp.gate_up_proj"][index]}.`;

  /** v1 with one module of v2. */
  function mixed(rank: number, prefix: string): Golden {
    const [before, after] = [pulled.get("v1")?.[rank] ?? {}, pulled.get("v2")?.[rank] ?? {}];
    return Object.fromEntries(
      Object.entries(before).map(([name, digest]) => [
        name,
        name.startsWith(prefix) ? (after[name] ?? digest) : digest,
      ]),
    );
  }

  it("changes its modules, keeps every other byte, and is taken back by a rollback", async () => {
    const push = await V2.open(cluster, { ...FP8, weight_version: "partly" }, PARTIAL);
    for (const name of QKV) await push.send([name]);
    await committed(push);
    const held = await cluster.exportAll();
    expect(held).toEqual([0, 1].map((rank) => mixed(rank, module(0))));
    expect(held).not.toEqual(pulled.get("v1"));
    const back = await cluster.client.rollback(cluster.fleet, { to_weight_version: "v1" });
    expect(await cluster.ended(back.reload_id)).toMatchObject({ state: "committed" });
    expect(await cluster.exportAll()).toEqual(pulled.get("v1"));
    const forth = await cluster.client.rollback(cluster.fleet, { to_weight_version: "partly" });
    expect(await cluster.ended(forth.reload_id)).toMatchObject({ state: "committed" });
    expect(await cluster.exportAll()).toEqual(held);
    await pull("v1");
  });

  it("says the digest of all live bytes, not of those that it wrote", async () => {
    const push = await V2.open(cluster, FP8, PARTIAL);
    await push.send(QKV);
    await committed(push);
    const second = await V1.open(cluster, FP8, PARTIAL);
    await second.send(QKV);
    await committed(second);
    expect(await cluster.exportAll()).toEqual(pulled.get("v1"));
    expect(liveDigest(0)).toBe(digestOfV1);
  });

  it("is not finished with half a module, nor with none", async () => {
    const push = await V2.open(cluster, FP8, PARTIAL);
    const finish = () => cluster.client.finish(push.reload.reload_id);
    await expect(finish()).rejects.toThrow("no module has been sent");
    await push.send(QKV.slice(0, 2));
    await expect(finish()).rejects.toThrow(`1 tensor has not been sent, or not whole: ${QKV[2]}`);
    await cluster.client.cancel(push.reload.reload_id);
  });

  it("whose worker is killed in the middle of its swap is whole on its successor", async () => {
    const push = await V2.open(cluster, FP8, PARTIAL);
    await push.send(GATE_UP);
    const fault = cluster.fault("worker.exchanging@0-1", "kill");
    await Promise.all([committed(push), fault.hit()]);
    await cluster.fleetWhere(({ routable }) => routable);
    expect(await cluster.exportAll()).toEqual([0, 1].map((rank) => mixed(rank, module(1))));
    await pull("v1");
  });
});

describe("retain_export", () => {
  it("lets a rank whose arena is lost start again from what it kept; without it, it waits for the next commit", async () => {
    for (const kept of [true, false]) {
      const push = await V2.open(
        cluster,
        { ...FP8, ...NEW_LAYOUT, weight_version: `kept-${kept}` },
        { retain_export: kept },
      );
      await push.send(V2.names);
      await committed(push);
      const directory = join(cluster.runDir, cluster.fleet, "replica-0", "rank-1");
      await cluster.until("the file to be there, or not", async () =>
        existsSync(join(directory, "kept.safetensors")) === kept ? true : null,
      );
      await push.forgotten(); // until then it could take the buckets again
      const held = cluster.fault("worker.starting@0-1", "wait");
      process.kill(cluster.pidOf("worker 0/1"), "SIGKILL");
      await held.hit();
      rmSync(join(directory, "live.safetensors"));
      held.release();
      if (kept) {
        const isOfNow = ({ rank, pid }: { rank: number; pid: number }) => pid === cluster.pidOf(`worker 0/${rank}`);
        await cluster.fleetWhere(({ routable, ranks }) => routable && ranks.every(isOfNow));
        expect(await cluster.exportAll()).toEqual(pulled.get("v2"));
      } else {
        await cluster.fleetWhere(
          ({ not_routable_reason }) => not_routable_reason?.startsWith("source_gone: rank 0/1") ?? false,
        );
      }
    }
    await pull("v1");
    await cluster.fleetWhere(({ routable }) => routable);
  });
});
