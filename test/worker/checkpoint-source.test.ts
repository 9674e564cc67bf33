// A checkpoint as deliveries, over memory in place of the core: layers come in any order and as often as jobs are given out, and
// staging is closed over all of them or not at all.

import { readFileSync } from "node:fs";
import path from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { readCheckpointTable } from "../../orchestrator/checkpoint/checkpoint-table.js";
import type { Plan } from "../../orchestrator/contract/plan.js";
import { planReload } from "../../orchestrator/planner/plan-reload.js";
import { layoutArena } from "../../orchestrator/program/arena-layout.js";
import type { ResolvedProgram } from "../../orchestrator/program/make-program.js";
import { matricesOfRank } from "../../orchestrator/program/rank-matrices.js";
import { checkpointSource, loadLayers } from "../../worker/checkpoint-source.js";
import { closeIntake } from "../../worker/intake/close-intake.js";
import { openIntake } from "../../worker/intake/intake.js";
import type { Loading } from "../../worker/loading.js";
import { fillArena, interpret } from "../program/interpret-program.js";

const CHECKPOINTS = path.resolve(import.meta.dirname, "../fixtures/checkpoints");
const RANK = 1;

let plan: Plan;
let files: Map<string, Uint8Array>;
beforeAll(async () => {
  const { table, config } = await readCheckpointTable(path.join(CHECKPOINTS, "tiny-deepseek-v3/v1"), {
    allowedRoots: [CHECKPOINTS],
  });
  const ranks = { tensorParallelSize: 2, expertParallel: false };
  plan = planReload({ table, config, ...ranks, scheme: "none", ignore: [], dtype: "auto" });
  files = new Map(plan.source.files.map((file) => [file.path, new Uint8Array(readFileSync(file.path))]));
});

/** A rank in memory; each program has the digest that is next of these, or 1. */
function rankInMemory(digests: bigint[] = []) {
  const arena = layoutArena(plan.layout, RANK);
  const filled = { bytes: new Uint8Array(arena.dataBytes).fill(0xa5), writes: new Uint8Array(arena.dataBytes) };
  const complete = new Set<number>();
  const names: string[] = [];
  let failing = false;
  const staging = {
    closed: null as { digest: bigint; spans: unknown } | null,
    async run(_owner: unknown, _plan: unknown, { program }: ResolvedProgram, { name }: { name: string }) {
      names.push(name);
      await new Promise(setImmediate);
      if (failing) throw new Error("no memory");
      interpret(program, files, filled);
      return { digest: (digests.shift() ?? 1n).toString(16) };
    },
    async close(_owner: unknown, digest: bigint, spans: unknown) {
      staging.closed = { digest, spans };
    },
  };
  const report = { layerWritten() {}, layerComplete: (layer: number) => void complete.add(layer) };
  const sources = { requireUntouched: async () => {} };
  const loaded = { ...plan, allowNonFinite: false, kind: "safetensors", base: null };
  const loading = { plan: loaded, staging, report, sources, scope: "0-1" } as unknown as Loading;
  const intake = openIntake(
    { reload: "r", epoch: 1, content: "r" },
    loading.plan,
    matricesOfRank(plan.layout, arena, RANK),
  );
  const deps = { run: loading.staging.run, report: loading.report };
  return {
    ...{ arena, filled, complete, names, staging },
    fail: (fails: boolean) => {
      failing = fails;
    },
    load: (...layers: number[]) => loadLayers(loading, intake, layers),
    loadAll: () => checkpointSource.takeAll(loading, intake),
    close: () => closeIntake(intake, checkpointSource.rest(loading, intake), deps, loading.staging),
  };
}

const allLayers = () => [...plan.layout.layers.keys()];

describe("a checkpoint's layers", () => {
  it("come in any order, one by one or at the barrier, and staging then has every byte once, as one program writes it", async () => {
    const rank = rankInMemory();
    const [first = 0, ...others] = allLayers().reverse();
    await rank.load(first);
    expect([...rank.complete]).toEqual([first]);
    await rank.load(...others.slice(0, 2));
    await rank.loadAll();
    await rank.close();
    const expected = fillArena(plan, rank.arena, RANK, files);
    expect(Buffer.compare(rank.filled.bytes, expected.bytes)).toBe(0);
    expect(Buffer.compare(rank.filled.writes, expected.writes)).toBe(0);
    expect([...rank.complete].sort((a, b) => a - b)).toEqual(allLayers());
    expect(rank.staging.closed?.spans).toBeNull();
  });

  it("are written once, though two jobs come for them at the same time and again later", async () => {
    const rank = rankInMemory();
    await Promise.all([rank.load(1, 2), rank.load(2, 1), rank.load(1)]);
    await rank.load(1, 2);
    expect(rank.names.sort()).toEqual([1, 2].map((layer) => `layer ${plan.layout.layers[layer]?.name}`).sort());
  });

  it("are loaded by the next job when the first failed, for all who waited for it", async () => {
    const rank = rankInMemory();
    rank.fail(true);
    const failed = await Promise.allSettled([rank.load(1), rank.load(1)]);
    expect(failed.map(({ status }) => status)).toEqual(["rejected", "rejected"]);
    expect(rank.complete.size).toBe(0);
    rank.fail(false);
    await rank.load(1);
    expect([...rank.complete]).toEqual([1]);
  });
});

describe("closing", () => {
  it("leaves no row out: what no job has loaded is written then", async () => {
    const rank = rankInMemory();
    await rank.load(...allLayers().slice(1));
    await rank.close();
    const expected = fillArena(plan, rank.arena, RANK, files);
    expect(Buffer.compare(rank.filled.writes, expected.writes)).toBe(0);
    expect([...rank.complete].sort((a, b) => a - b)).toEqual(allLayers());
  });

  it("sums the digests modulo 2^64, those of what waited for the barrier with the layers'", async () => {
    const digests = [
      2n ** 64n - 1n,
      ...allLayers()
        .slice(1)
        .map(() => 1n),
      5n,
    ];
    const rank = rankInMemory([...digests]);
    await rank.loadAll();
    await rank.close();
    expect(rank.staging.closed?.digest).toBe(digests.reduce((sum, digest) => sum + digest) % 2n ** 64n);
  });

  it("by two at the same time writes what waited for the barrier once", async () => {
    const rank = rankInMemory();
    await rank.loadAll();
    await Promise.all([rank.close(), rank.close()]);
    expect(rank.names.filter((name) => name === "finalize")).toHaveLength(1);
    expect(rank.staging.closed?.digest).toBe(BigInt(rank.names.length));
  });
});
