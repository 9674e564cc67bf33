// A rank's arena outlives everything that Redis knows of it: a worker that starts takes it up by what the files say alone.

import { mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { loadNative } from "../../native/native.js";
import type { Layout } from "../../orchestrator/contract/plan.js";
import { layoutArena } from "../../orchestrator/program/arena-layout.js";
import { layoutOfHeader } from "../../worker/arena-header.js";
import { HOST_FILES, openRankArena, type RankArena } from "../../worker/rank-arena.js";

const core = loadNative();
const DIGEST = "ab".repeat(32);
const HELD = { reload: "r1", content: "r1", weightVersion: "7", epoch: 3, layoutDigest: DIGEST };

/** Of one layer, with kernel tensors of these numbers of rows. */
function layoutOf(rows: Record<string, number>): Layout {
  const kernelTensors = Object.entries(rows).map(([name, count]) => {
    return { name, dtype: "BF16", shape: [count, 3], scale: null, experts: null };
  });
  return { tensorParallelSize: 1, layers: [{ name: "l", kernelTensors }] } as unknown as Layout;
}
const LAYOUT = layoutOf({ "a.weight": 5, "b.weight": 300 });

let directory: string;
let distrusted: string[];
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "layercast-arena-"));
  distrusted = [];
});
afterEach(() => rmSync(directory, { recursive: true }));

function open(bytesMayBeLost = false): Promise<RankArena> {
  const onDistrust = (reason: string) => void distrusted.push(reason);
  const place = { device: core.openDevice("cpu"), holders: null, poison: false, files: HOST_FILES };
  return openRankArena({ core, rank: 0, directory, ...place, bytesMayBeLost, onDistrust });
}

/** A first load of these weights, which are zero; `end` false: the worker dies within its swap. */
async function load(layout = LAYOUT, end = true): Promise<void> {
  const arena = await open();
  const { target, mode } = await arena.makeDestination(layout, DIGEST, "staged", "auto");
  arena.beginSwap(HELD.epoch, HELD.reload);
  if (mode === "next") arena.takeOver(target);
  if (end) arena.endSwap(target, HELD, "0".repeat(16));
  arena.close();
}

describe("a worker that starts on an arena", () => {
  it("takes it up as its control page says, with every tensor where it was", async () => {
    await load();
    for (const mayBeLost of [false, true]) {
      const arena = await open(mayBeLost);
      expect(arena.liveState()).toEqual({ state: "live", generation: 2, held: HELD });
      expect(arena.standing()?.layout).toEqual(layoutArena(LAYOUT, 0));
      arena.close();
    }
    expect(distrusted).toEqual([]);
  });

  it("swaps in it when a plan's digest and tensors are its own, and makes another when only the digest is", async () => {
    await load();
    const arena = await open();
    expect((await arena.makeDestination(LAYOUT, DIGEST, "staged", "auto")).mode).toBe("staging");
    arena.close();
    const again = await open();
    expect(
      (await again.makeDestination(layoutOf({ "a.weight": 300, "b.weight": 5 }), DIGEST, "staged", "auto")).mode,
    ).toBe("next");
    again.close();
  });

  it("leaves it torn where a swap was not ended", async () => {
    await load();
    const arena = await open();
    arena.beginSwap(4, "r2");
    arena.close();
    const next = await open();
    expect(next.liveState()).toMatchObject({ state: "torn", held: null });
    next.close();
  });

  it("does not take it up when the disk lost bytes with the host, though the page is whole", async () => {
    await load();
    const arena = await open();
    const { target } = await arena.makeDestination(LAYOUT, DIGEST, "staged", "auto");
    arena.beginSwap(4, "r2");
    arena.endSwap(target, { ...HELD, epoch: 4, reload: "r2" }, "1".repeat(16)); // its bytes are still those before
    arena.close();
    const trusting = await open(false);
    expect(trusting.liveState().state).toBe("live");
    trusting.close();
    const next = await open(true);
    expect(next.liveState()).toMatchObject({ state: "empty", held: null });
    expect(distrusted).toEqual([
      expect.stringContaining("its bytes have the digest 0000000000000000, its control page says 1"),
    ]);
    next.close();
  });

  const others: [string, (path: string) => void][] = [
    ["cut short", (path) => writeFileSync(path, "")],
    ["no safetensors file", (path) => writeFileSync(path, Buffer.alloc(10_000, 7))],
    ["gone", (path) => renameSync(path, `${path}.away`)],
  ];
  it.each(others)("does not take up a live file that is %s", async (_, change) => {
    await load();
    change(join(directory, "live.safetensors"));
    const arena = await open();
    expect(arena.liveState().state).toBe("empty");
    arena.close();
  });

  it("does not take up a file of another size than its page says", async () => {
    await load(layoutOf({ "a.weight": 5 }));
    renameSync(join(directory, "live.safetensors"), join(directory, "other"));
    rmSync(join(directory, "control"));
    await load();
    renameSync(join(directory, "other"), join(directory, "live.safetensors"));
    const arena = await open();
    expect([arena.liveState().state, distrusted.length]).toEqual(["empty", 1]);
    arena.close();
  });
});

it("a header that is not an arena's is refused with what is wrong", () => {
  const { headerBytes, dataBytes } = layoutArena(LAYOUT, 0);
  const page = { dataOffset: headerBytes.byteLength, dataBytes };
  expect(layoutOfHeader(headerBytes, page, "f").tensors.map(({ name }) => name)).toEqual(["a.weight", "b.weight"]);
  expect(() => layoutOfHeader(headerBytes, { ...page, dataBytes: dataBytes + 256 }, "f")).toThrow(/f /);
  const text = Buffer.from(headerBytes).toString("latin1");
  const changed = (from: string, to: string) => Buffer.from(text.replaceAll(from, to), "latin1");
  expect(() => layoutOfHeader(changed('"BF16"', '"I16" '), page, "f")).toThrow(/dtype I16/);
  expect(() => layoutOfHeader(changed("__pad__.0", "a_tensor0"), page, "f")).toThrow(/no multiple of 256/);
});
