// What must be right with a real engine: out of the arena it computes what a stock engine computes from the same checkpoint, before
// and after each commit, to the last bit of every log-probability.

import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { CHECKPOINTS, type Cluster, checkpoint, startCluster } from "../e2e/cluster.js";
import { engineFlags, PYTHON, wholeRun } from "./run.js";
import { compareGenerated, type Generated, startEngine, type VllmEngine } from "./vllm.js";

const MODEL = "tiny-qwen3";
const model = (version: string) => join(CHECKPOINTS, MODEL, version);

let cluster: Cluster;
const engines: VllmEngine[] = [];

async function start(
  kind: "stock" | "arena",
  version: string,
  args: readonly string[],
  env: NodeJS.ProcessEnv = {},
): Promise<VllmEngine> {
  const log = join(cluster.directory, `${kind}-${version}.log`);
  const engine = await startEngine(kind, { python: PYTHON, model: model(version), args, env, log });
  engines.push(engine);
  return engine;
}

async function stockOutput(version: string, args: readonly string[]): Promise<Generated> {
  const engine = await start("stock", version, args);
  await engine.stop();
  return engine.first;
}

afterEach(async () => {
  for (const engine of engines.splice(0)) await engine.stop();
  await cluster.stop();
});

describe("one rank", () => {
  beforeEach(async () => {
    cluster = await startCluster({ tp: 1 });
  });

  it.each(["none", "fp8-channel"])(
    "as %s, generates what a stock engine does through v1, v2, a rollback and v2",
    async (scheme) => {
      const run = wholeRun(cluster, MODEL, { scheme });
      await run.commit("v1");
      const flags = [...(await engineFlags(cluster)), "--enforce-eager"];
      const [, , , , ...asStock] = flags; // all but where the weights are
      const expected = { v1: await stockOutput("v1", asStock), v2: await stockOutput("v2", asStock) };
      expect(compareGenerated(expected.v1, expected.v2).equal).toBeLessThan(expected.v1.tokens.length);
      const engine = await start("arena", "v1", flags);
      const found = [engine.first];
      for (const step of [() => run.commit("v2"), run.rollBack, () => run.commit("v2")]) {
        await step();
        found.push(await engine.generate());
      }
      const all = expected.v1.tokens.length;
      expect(found.map((one, at) => compareGenerated(one, at % 2 === 0 ? expected.v1 : expected.v2))).toEqual(
        found.map(() => ({ equal: all, largest: 0 })),
      );
    },
  );

  it("is refused where its kernels keep a packed copy, by name", async () => {
    await cluster.reload({ source: checkpoint("tiny-qwen3-moe"), recipe: { scheme: "none" } });
    const flags = [...(await engineFlags(cluster)), "--enforce-eager"];
    const log = join(cluster.directory, "moe.log");
    const started = startEngine("arena", {
      python: PYTHON,
      model: join(CHECKPOINTS, "tiny-qwen3-moe", "v1"),
      args: flags,
      log,
    });
    await expect(started).rejects.toThrow(/experts/);
    await expect(started).rejects.toThrow(/copy/);
  });

  it("is refused where the fleet holds another recipe, with both layouts", async () => {
    await cluster.reload({ source: checkpoint(MODEL), recipe: { scheme: "fp8-channel" } });
    const flags = [...(await engineFlags(cluster)).slice(0, 6), "--enforce-eager"];
    expect(flags).not.toContain("--quantization");
    await expect(start("arena", "v1", flags)).rejects.toThrow(/F8_E4M3[\s\S]*BF16|BF16[\s\S]*F8_E4M3/);
  });
});

describe("two ranks", () => {
  beforeEach(async () => {
    cluster = await startCluster({ tp: 2 });
  });

  it("stand still together: after each commit both compute with the same version", async () => {
    const run = wholeRun(cluster, MODEL, { scheme: "none" });
    await run.commit("v1");
    const flags = [...(await engineFlags(cluster)), "--enforce-eager"];
    // A processor each: vLLM does not share out what it has.
    const engine = await start("arena", "v1", flags, { VLLM_CPU_OMP_THREADS_BIND: "0|1" });
    await run.commit("v2");
    const second = await engine.generate();
    await run.rollBack();
    expect(compareGenerated(await engine.generate(), engine.first)).toEqual({
      equal: engine.first.tokens.length,
      largest: 0,
    });
    await run.commit("v2");
    expect(compareGenerated(await engine.generate(), second)).toEqual({ equal: second.tokens.length, largest: 0 });
    expect(compareGenerated(second, engine.first).equal).toBeLessThan(second.tokens.length);
  });
});
