import { describe, expect, it } from "vitest";
import { describePlan } from "../../orchestrator/planner/describe-plan.js";
import { groupLayers } from "../../orchestrator/planner/group-layers.js";
import { planReload } from "../../orchestrator/planner/plan-reload.js";
import { layoutArena } from "../../orchestrator/program/arena-layout.js";
import { LLAMA, shapesOf, synthesize } from "./synthetic-checkpoint.js";
import { deepseekCase, moeShapes } from "./synthetic-moe.js";

const fields = { ...LLAMA, num_hidden_layers: 6 };
const { table, config } = synthesize(fields, shapesOf(fields), { fill: false });
const planOf = (tensorParallelSize: number) =>
  planReload({
    table,
    config,
    tensorParallelSize,
    expertParallel: false,
    scheme: "fp8-channel",
    ignore: [],
    dtype: "auto",
  });
const plan = planOf(4);
const HOST = { layersPerJob: "auto", threads: 16 } as const;

describe("groupLayers", () => {
  it("puts a number of layers into each job, in order, the last with the rest", () => {
    expect(groupLayers(plan, 1)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8].map((layer) => [layer]));
    expect(groupLayers(plan, 4)).toEqual([[0, 1, 2, 3], [4, 5, 6, 7], [8]]);
    expect(groupLayers(plan, 100)).toEqual([[0, 1, 2, 3, 4, 5, 6, 7, 8]]);
  });

  it("on auto fills jobs up to the bytes a rank reads and writes, and never splits a layer", () => {
    const { layers } = describePlan(plan, { layersPerJob: 1, threads: 16 });
    const bytesOf = (job: number[]) =>
      job.reduce((sum, layer) => sum + (layers[layer]?.read_bytes ?? 0) + (layers[layer]?.held_bytes ?? 0), 0);
    const target = 2 * bytesOf([1]) + 1;
    const jobs = groupLayers(plan, "auto", target);
    expect(jobs.flat()).toEqual([...layers.keys()]);
    jobs.forEach((job, index) => {
      expect(bytesOf(job)).toBeLessThanOrEqual(target);
      expect(bytesOf([...job, ...(jobs[index + 1]?.slice(0, 1) ?? [])]) > target || index === jobs.length - 1).toBe(
        true,
      );
    });
    expect(groupLayers(plan, "auto", 1)).toEqual(groupLayers(plan, 1));
    expect(groupLayers(plan, "auto")).toHaveLength(1);
  });
});

describe("describePlan", () => {
  it("counts what each rank reads: all ranks of a plan without replicas together read the checkpoint once", () => {
    const one = describePlan(planOf(1), HOST).ranks[0];
    const shapes = shapesOf(fields);
    const bytes = Object.values(shapes).reduce(
      (sum, shape) => sum + shape.reduce((product, size) => product * size, 2),
      0,
    );
    expect(one?.read_bytes).toBe(bytes);
    const replicated = (6 * 2 + 1) * 24 * 2;
    const two = describePlan(planOf(2), HOST).ranks;
    expect(two.reduce((sum, { read_bytes }) => sum + read_bytes - replicated, 0)).toBe(bytes - replicated);
  });

  it("says the jobs, what is held, and an estimate that has room for both halves of the arena", () => {
    const arena = layoutArena(plan.layout, 0);
    const view = describePlan(plan, { layersPerJob: 4, threads: 16 });
    expect(view.jobs_per_rank).toBe(3);
    expect(view.layers.map(({ job }) => job)).toEqual([0, 0, 0, 0, 1, 1, 1, 1, 2]);
    expect(view.layers[1]).toMatchObject({ name: "model.layers.0", kernel_tensors: 6 + 4 + 4 });
    const held = arena.tensors.reduce((sum, { bytes }) => sum + bytes, 0);
    expect(view.layers.reduce((sum, { held_bytes }) => sum + held_bytes, 0)).toBe(held);
    expect(view.ranks).toHaveLength(4);
    for (const rank of view.ranks) {
      expect(rank.held_bytes).toBe(held);
      expect(rank.arena_bytes).toBe(arena.headerBytes.byteLength + arena.dataBytes);
      expect(rank.peak_memory_bytes).toBeGreaterThan(2 * arena.dataBytes);
    }
    expect(view).toMatchObject({
      model_type: "llama",
      recipe: "fp8-channel",
      skipped: [],
      warnings: [],
      layout_digest: plan.layoutDigest,
    });
  });

  it("counts the scratch of as many threads as the rank's core has: 2 MiB of a tile each on the CPU", () => {
    const [few, many] = [16, 192].map((threads) => describePlan(plan, { layersPerJob: "auto", threads }).ranks[0]);
    expect((many?.peak_memory_bytes ?? 0) - (few?.peak_memory_bytes ?? 0)).toBe((192 - 16) * 2 * 2 ** 20);
    expect((many?.device_memory_bytes ?? 0) - (few?.device_memory_bytes ?? 0)).toBe((192 - 16) * 2 * 4 * 2 ** 20);
  });

  it("estimates more scratch where matrices are transposed on disk, for their tiles are larger", () => {
    const [plain, turned] = (["stacked", "transposed"] as const).map((form) => {
      const model = deepseekCase(form);
      const checkpoint = synthesize(model.fields, moeShapes(model), { fill: false });
      const asked = {
        tensorParallelSize: 2,
        expertParallel: false,
        scheme: "none",
        ignore: [],
        dtype: "auto",
      } as const;
      return describePlan(planReload({ ...checkpoint, ...asked }), HOST).ranks[0];
    });
    expect(turned?.arena_bytes).toBe(plain?.arena_bytes);
    expect(turned?.peak_memory_bytes).toBeGreaterThan(plain?.peak_memory_bytes ?? 0);
    expect(turned?.device_memory_bytes).toBeGreaterThan(plain?.device_memory_bytes ?? 0);
  });
});
