// Ranks on a GPU, with a stand-in for it: a library that meets the same contract as the CUDA backend, does the CPU's arithmetic,
// and keeps device memory where another process can hold it. What is above the native core cannot tell the difference.

import { execFile } from "node:child_process";
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { compareTensors, type Golden } from "../../orchestrator/cli/compare-tensors.js";
import { packageRoot } from "../../orchestrator/host/package-root.js";
import { CHECKPOINTS, type Cluster, checkpoint, clearFaults, FIXTURES, isAlive, startCluster } from "./cluster.js";

const STAND_IN = join(packageRoot(), "native/build/Release/layercast_stand_in.so");
const SCHEME = "fp8-block";

const directory = mkdtempSync(join(tmpdir(), "layercast-device-"));
afterAll(() => rmSync(directory, { recursive: true }));

/** Once this file is there, every call to the device fails. */
const LOST = join(directory, "lost");
/** A busy machine may need seconds to start a worker's successor, which is to find the holder alive. */
const ENV = { LAYERCAST_CUDA_LIBRARY: STAND_IN, LAYERCAST_STAND_IN_LOST: LOST, LAYERCAST_HOLD_MS: "15000" };

const goldensOf = (version: string): Record<string, Golden> =>
  JSON.parse(readFileSync(join(FIXTURES, "goldens", `tiny-qwen3-${version}.json`), "utf8"));

const body = (version: string, install: Record<string, unknown> = {}) => ({
  source: checkpoint("tiny-qwen3", version),
  weight_version: version,
  recipe: { scheme: SCHEME },
  install: { allow_new_layout: true, ...install },
});

async function holds(cluster: Cluster, version: string, scheme = SCHEME): Promise<void> {
  await cluster.fleetWhere(({ routable, weight_version }) => routable && weight_version === version);
  for (const [rank, found] of (await cluster.exportAll()).entries()) {
    const expected = goldensOf(version)[`tp${cluster.tp}/rank${rank}/${scheme}`] ?? {};
    expect(compareTensors(found, expected)).toEqual({ matched: Object.keys(expected).length, differences: [] });
  }
}

/** A rank's page, as an engine reads it (docs/arena-format.md). */
function pageOf(cluster: Cluster, rank: number) {
  const page = readFileSync(join(rankDirectory(cluster, rank), "control"));
  return {
    arenaId: page.subarray(32, 48).toString("hex"),
    deviceKind: page.readUInt32LE(344),
    handle: page.subarray(368, 432).toString("hex"),
  };
}

function rankDirectory({ runDir, fleet }: Cluster, rank: number): string {
  return join(runDir, fleet, "replica-0", `rank-${rank}`);
}

function holderOf(cluster: Cluster, rank: number): number {
  const record = readFileSync(join(rankDirectory(cluster, rank), "live.safetensors.header.holder"), "utf8");
  return JSON.parse(record).pid as number;
}

describe("two ranks on a device", () => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await startCluster({ tp: 2, device: "cuda:0", env: ENV });
    expect((await cluster.reload(body("v1"))).error).toBeNull();
  });
  afterEach(async () => {
    clearFaults(cluster);
    await cluster.fleetWhere(({ routable }) => routable);
  });
  afterAll(() => cluster.stop());

  it.each(["device", "host"])("hold what is known to be right, staged in the memory of the %s", async (staging) => {
    for (const version of ["v2", "v1"]) {
      expect((await cluster.reload(body(version, { staging }))).error).toBeNull();
      await holds(cluster, version);
    }
    expect((await cluster.client.fleet(cluster.fleet)).ranks).toMatchObject([
      { device: "cuda:0" },
      { device: "cuda:0" },
    ]);
    expect(pageOf(cluster, 0).deviceKind).toBe(1);
  });

  it("keep their addresses from reload to reload, and give them up for another layout", async () => {
    const before = pageOf(cluster, 0);
    const holder = holderOf(cluster, 0);
    await cluster.reload(body("v2"));
    expect(pageOf(cluster, 0)).toEqual(before);
    const wider = { ...body("v1"), recipe: { scheme: "none" } };
    expect((await cluster.reload(wider)).error).toBeNull();
    await holds(cluster, "v1", "none");
    expect(pageOf(cluster, 0).arenaId).not.toBe(before.arenaId);
    expect(pageOf(cluster, 0).handle).not.toBe(before.handle);
    await cluster.until("the old holder to end", async () => !isAlive(holder) || null);
    expect((await cluster.reload(body("v1"))).error).toBeNull();
  });

  it("read files that a trainer rewrites by themselves once they are pinned, also when one is cut and written again", async () => {
    const source = join(cluster.sources, "rewritten");
    const directoryOf = (version: string) => join(CHECKPOINTS, "tiny-qwen3", version);
    cpSync(directoryOf("v2"), source, { recursive: true });
    const weights = readdirSync(source).filter((name) => name.endsWith(".safetensors"));
    const fileBytes = weights.reduce((sum, name) => sum + statSync(join(source, name)).size, 0);
    const reload = async (version: string) => {
      const ended = await cluster.reload({ ...body(version), source: pathToFileURL(source).href });
      expect(ended.error).toBeNull();
      await holds(cluster, version);
      return ended;
    };
    await cluster.until("the files to be pinned", async () => {
      const { ranks } = await reload("v2");
      return ranks.every(({ pinned_bytes }) => pinned_bytes >= fileBytes) || null;
    });
    const rewrite = (version: string, flag: "r+" | "w") => {
      for (const name of weights)
        writeFileSync(join(source, name), readFileSync(join(directoryOf(version), name)), { flag });
    };
    rewrite("v1", "r+");
    await reload("v1");
    rewrite("v3", "w"); // cut to nothing first: their pages are others from here on
    await reload("v3");
    await reload("v3");
  });

  it("find their memory again when a worker is killed: the same handle, the same holder, nothing loaded", async () => {
    await cluster.reload(body("v2"));
    const before = { ...pageOf(cluster, 1), holder: holderOf(cluster, 1) };
    const { ranks } = await cluster.client.fleet(cluster.fleet);
    const lines = cluster.lines.length;
    process.kill(cluster.pidOf("worker 0/1"), "SIGKILL");
    await cluster.fleetWhere((fleet) => fleet.ranks[1]?.incarnation !== ranks[1]?.incarnation);
    await holds(cluster, "v2");
    expect({ ...pageOf(cluster, 1), holder: holderOf(cluster, 1) }).toEqual(before);
    expect(cluster.lines.slice(lines).filter((line) => line.includes("catching up"))).toEqual([]);
  });

  it("end the holder of an arena that was never finished", async () => {
    const successor = cluster.fault("worker.starting@0-1", "wait");
    const killed = cluster.fault("worker.layer@0-1", "kill");
    const reload = await cluster.submit({ ...body("v1"), recipe: { scheme: "fp8-tensor" }, policy: { backoff_ms: 1 } });
    await killed.hit();
    const record = join(rankDirectory(cluster, 1), "next.safetensors.header.holder");
    const holder = JSON.parse(readFileSync(record, "utf8")).pid as number;
    await successor.hit();
    expect(isAlive(holder)).toBe(true);
    successor.release();
    await cluster.until("the holder to end", async () => !isAlive(holder) || null);
    expect(await cluster.ended(reload.reload_id)).toMatchObject({ state: "committed" });
    await holds(cluster, "v1", "fp8-tensor");
    expect((await cluster.reload(body("v1"))).error).toBeNull();
  });

  it("load again what they had when their holder is gone too", async () => {
    const before = pageOf(cluster, 1);
    const { ranks } = await cluster.client.fleet(cluster.fleet);
    const held = cluster.fault("worker.starting@0-1", "wait");
    const holder = holderOf(cluster, 1);
    process.kill(cluster.pidOf("worker 0/1"), "SIGKILL");
    process.kill(holder, "SIGKILL");
    await held.hit();
    await cluster.until("the holder to end", async () => !isAlive(holder) || null);
    held.release();
    await cluster.fleetWhere((fleet) => fleet.routable && fleet.ranks[1]?.incarnation !== ranks[1]?.incarnation);
    expect(pageOf(cluster, 1).handle).not.toBe(before.handle);
  });

  it("whose device is lost in the middle leave, and catch up when it is back", async () => {
    await cluster.reload(body("v1"));
    const held = cluster.fault("worker.layer@0-1", "wait");
    const reload = await cluster.submit({ ...body("v2"), policy: { attempts: 50, backoff_ms: 20 } });
    await held.hit();
    const before = cluster.pidOf("worker 0/1");
    writeFileSync(LOST, "");
    held.release();
    await cluster.until("the worker to leave", async () => cluster.pidOf("worker 0/1") !== before || null);
    rmSync(LOST);
    expect(await cluster.ended(reload.reload_id)).toMatchObject({ state: "committed", error: null });
    await holds(cluster, "v2");
  });
});

describe("a rank on a device with little memory", () => {
  it("fails with the numbers before anything changes, and commits staged in the host's memory", async () => {
    const cluster = await startCluster({
      tp: 1,
      device: "cuda:0",
      env: { ...ENV, LAYERCAST_STAND_IN_BYTES: "2000000" },
    });
    try {
      expect((await cluster.reload(body("v1"))).error).toBeNull();
      const refused = await cluster.reload(body("v2", { staging: "device" }));
      expect(refused).toMatchObject({ state: "failed", live_changed: false, error: { code: "out_of_memory" } });
      expect(refused.error?.message).toMatch(/\d{7}/);
      expect(refused.error?.details).toMatchObject({ bytes: expect.any(Number), freeBytes: expect.any(Number) });
      await holds(cluster, "v1");
      for (const staging of ["host", "auto"]) {
        expect((await cluster.reload(body("v2", { staging }))).error).toBeNull();
        await holds(cluster, "v2");
      }
    } finally {
      await cluster.stop();
    }
  });

  it("fails with the numbers when not even one half has room", async () => {
    const cluster = await startCluster({
      tp: 1,
      device: "cuda:0",
      env: { ...ENV, LAYERCAST_STAND_IN_BYTES: "100000" },
    });
    try {
      const refused = await cluster.reload(body("v1"));
      expect(refused).toMatchObject({ state: "failed", live_changed: false, error: { code: "out_of_memory" } });
      expect(refused.error?.message).toMatch(/\d{7}/);
    } finally {
      await cluster.stop();
    }
  });
});

describe("a fleet that is stopped", () => {
  it("leaves its holders for a moment, then they end by themselves", async () => {
    const cluster = await startCluster({ tp: 2, device: "cuda:0", env: { ...ENV, LAYERCAST_HOLD_MS: "1500" } });
    let holders: number[] = [];
    try {
      expect((await cluster.reload(body("v1"))).error).toBeNull();
      holders = [0, 1].map((rank) => holderOf(cluster, rank));
    } finally {
      await cluster.stop();
    }
    expect(holders.map(isAlive)).toEqual([true, true]);
    await cluster.until("the holders to end", async () => !holders.some(isAlive) || null);
  });
});

describe("a device that is not there", () => {
  it.each([
    ["cuda:9", STAND_IN, /there is no .*9/],
    ["cuda:0", join(STAND_IN, "nowhere"), /nowhere/],
    ["tpu:0", STAND_IN, /cuda:0 for the first GPU/],
  ])("%s from %s is refused in one sentence, and the worker is not started again", async (device, library, words) => {
    const worker = ["worker", "--rank", "0", "--tp", "1", "--device", device, "--run-dir", directory];
    const env = { ...process.env, LAYERCAST_CUDA_LIBRARY: library, REDIS_URL: "redis://127.0.0.1:1" };
    const program = [join(packageRoot(), "dist/orchestrator/cli/main.js"), ...worker];
    const { code, stderr } = await promisify(execFile)(process.execPath, program, { env }).catch((error) => error);
    expect(code).toBe(2);
    expect(stderr).toMatch(words);
  });
});
