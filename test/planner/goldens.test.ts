import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { readCheckpointTable } from "../../orchestrator/checkpoint/checkpoint-table.js";
import type { Scheme } from "../../orchestrator/contract/recipe.js";
import { layoutArena } from "../../orchestrator/planner/arena-layout.js";
import { checkPlan } from "../../orchestrator/planner/check-plan.js";
import { planReload } from "../../orchestrator/planner/plan-reload.js";
import { fillArena } from "./interpret-program.js";

const FIXTURES = path.resolve(import.meta.dirname, "../fixtures");
const CHECKPOINTS = ["tiny-qwen3/v1", "tiny-qwen3/v2", "tiny-qwen3/v3", "tiny-llama/v1", "edge-llama/v1"];

type Golden = Record<string, Record<string, [dtype: string, shape: number[], sha256: string]>>;

describe.each(CHECKPOINTS)("the goldens of %s", (name) => {
  const golden = JSON.parse(
    readFileSync(path.join(FIXTURES, "goldens", `${name.replace("/", "-")}.json`), "utf8"),
  ) as Golden;
  const cases = Object.entries(golden).map(([key, tensors]) => {
    const [, ranks = "", rank = "", scheme = ""] = /^tp(\d+)\/rank(\d+)\/(.+)$/.exec(key) ?? [];
    return { ranks: Number(ranks), rank: Number(rank), scheme: scheme as Scheme, tensors };
  });
  const planFor = async (ranks: number, scheme: Scheme) => {
    const { table, config } = await readCheckpointTable(path.join(FIXTURES, "checkpoints", name), {
      allowedRoots: [FIXTURES],
    });
    const plan = planReload({ table, config, tensorParallelSize: ranks, scheme, ignore: [], dtype: "auto" });
    checkPlan(plan, table);
    return plan;
  };

  it("have the names, dtypes and shapes of the plan, for every size, rank and recipe", async () => {
    expect(cases.length).toBeGreaterThanOrEqual(12);
    for (const { ranks, scheme, tensors } of cases) {
      const arena = layoutArena((await planFor(ranks, scheme)).layout);
      const planned = Object.fromEntries(arena.tensors.map(({ name, dtype, shape }) => [name, [dtype, shape]]));
      const expected = Object.fromEntries(
        Object.entries(tensors).map(([name, [dtype, shape]]) => [name, [dtype, shape]]),
      );
      expect(planned).toEqual(expected);
    }
  });

  it("have the bytes of the plan where nothing is quantized", async () => {
    for (const { ranks, rank, tensors } of cases.filter(({ scheme }) => scheme === "none")) {
      const plan = await planFor(ranks, "none");
      const arena = layoutArena(plan.layout);
      const files = new Map(plan.source.files.map((file) => [file.path, new Uint8Array(readFileSync(file.path))]));
      const { bytes } = fillArena(plan, arena, rank, files);
      for (const tensor of arena.tensors) {
        const held = bytes.subarray(tensor.offset, tensor.offset + tensor.bytes);
        const digest = createHash("sha256").update(held).digest("hex");
        expect([ranks, rank, tensor.name, digest]).toEqual([ranks, rank, tensor.name, tensors[tensor.name]?.[2]]);
      }
    }
  });
});
