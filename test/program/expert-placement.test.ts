import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { SLICE_FIELDS } from "../../native/native.js";
import type { Plan } from "../../orchestrator/contract/plan.js";
import type { Recipe } from "../../orchestrator/contract/recipe.js";
import { checkPlan } from "../../orchestrator/planner/check/check-plan.js";
import { describePlan } from "../../orchestrator/planner/describe-plan.js";
import { planReload } from "../../orchestrator/planner/plan-reload.js";
import { layoutArena, layoutArenas } from "../../orchestrator/program/arena-layout.js";
import { heldShape, matricesOf } from "../../orchestrator/program/expert-placement.js";
import { matricesOfRank } from "../../orchestrator/program/rank-matrices.js";
import { describeElement } from "../../orchestrator/program/resolve.js";
import { expectLayercastError } from "../checkpoint/expect-error.js";
import { createResolver } from "../planner/resolver.js";
import { synthesize } from "../planner/synthetic-checkpoint.js";
import { deepseekCase, type ExpertForm, moeShapes } from "../planner/synthetic-moe.js";
import { rowsOf } from "./interpret-program.js";

/** Of three experts of 51 rows, which divide by no number of ranks but 3, 17 and 51. */
function planned(
  form: ExpertForm,
  tensorParallelSize: number,
  expertParallel = true,
  scheme: Recipe = "fp8-channel",
): Plan {
  const model = deepseekCase(form);
  const fields = { ...model.fields, moe_intermediate_size: 51, n_shared_experts: 0 };
  const { table, config } = synthesize(fields, moeShapes({ ...model, fields }), { fill: false });
  const asked = { tensorParallelSize, expertParallel, scheme, ignore: [], dtype: "auto" } as const;
  const plan = planReload({ table, config, ...asked });
  checkPlan(plan, table);
  return plan;
}

const W13 = "model.layers.1.mlp.experts.w13_weight";
const W2 = "model.layers.1.mlp.experts.w2_weight";

function placeOf(plan: Plan, rank: number, name: string) {
  return layoutArena(plan.layout, rank).tensors.find((tensor) => tensor.name === name);
}

describe("experts by rank", () => {
  it("are dealt out in order, all of them, the first ranks having one more where they do not divide", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 300 }), fc.integer({ min: 1, max: 64 }), (count, ranks) => {
        const all = Array.from({ length: ranks }, (_, rank) =>
          matricesOf({ experts: { count, byRank: true } }, rank, ranks),
        );
        let next = 0;
        for (const { first, count: held } of all) {
          expect(first).toBe(next);
          next += held;
        }
        expect(next).toBe(count);
        const held = all.map((one) => one.count);
        expect(held).toEqual(held.toSorted((a, b) => b - a));
        expect(Math.max(...held) - Math.min(...held)).toBeLessThanOrEqual(1);
      }),
    );
    expect(heldShape({ experts: { count: 8, byRank: true } }, [4, 2], 2, 3)).toEqual([2, 4, 2]);
    expect(heldShape({ experts: { count: 8, byRank: false } }, [], 2, 3)).toEqual([8]);
    expect(heldShape({ experts: null }, [4, 2], 2, 3)).toEqual([4, 2]);
  });

  it("are whole, so that no size of theirs need divide, and each rank's arena has room for its own", () => {
    expectLayercastError(() => planned("each", 2, false), "indivisible", /moe_intermediate_size is 51/);
    const plan = planned("each", 2);
    expect([0, 1].map((rank) => placeOf(plan, rank, W13)?.shape)).toEqual([
      [2, 102, 256],
      [1, 102, 256],
    ]);
    expect([0, 1].map((rank) => placeOf(plan, rank, `${W13}_scale`)?.shape)).toEqual([
      [2, 102, 1],
      [1, 102, 1],
    ]);
    const [first, second] = layoutArenas(plan.layout);
    expect(first).toEqual(layoutArena(plan.layout, 0));
    expect(second).toEqual(layoutArena(plan.layout, 1));
    const { ranks, layers } = describePlan(plan, { layersPerJob: "auto", threads: 16 });
    expect(ranks[0]?.held_bytes).toBeGreaterThan(ranks[1]?.held_bytes ?? 0);
    expect(layers.reduce((sum, layer) => sum + layer.held_bytes, 0)).toBe(ranks[0]?.held_bytes);
  });

  it("are made up to whole scale blocks under fp8-block: gate, up and down each, their columns too", () => {
    const plan = planned("each", 2, true, "fp8-block");
    const shapes = [W13, `${W13}_scale_inv`, W2, `${W2}_scale_inv`].map((name) => placeOf(plan, 1, name)?.shape);
    expect(shapes).toEqual([
      [1, 256, 256],
      [1, 2, 2],
      [1, 256, 128],
      [1, 2, 1],
    ]);
    expect(placeOf(planned("each", 2, true, "none"), 1, W2)?.shape).toEqual([1, 256, 51]);
  });

  it("may be fewer than the ranks: some then have none", () => {
    const plan = planned("each", 4);
    expect([0, 1, 2, 3].map((rank) => placeOf(plan, rank, W13)?.shape[0])).toEqual([1, 1, 1, 0]);
    const { kernels } = matricesOfRank(plan.layout, layoutArena(plan.layout, 3), 3);
    const spans = kernels.flatMap((kernel) => kernel.spans);
    expect(spans.every(({ bytes }) => bytes > 0)).toBe(true);
  });

  it.each<ExpertForm>(["each", "stacked", "transposed", "apart"])(
    "of other ranks are never read, when the checkpoint has them %s",
    (form) => {
      const plan = planned(form, 2);
      const layer = plan.layout.layers.findIndex(({ name }) => name === "model.layers.1");
      const read = [0, 1].map((rank) => {
        const resolve = createResolver(plan.layout, layoutArena(plan.layout, rank));
        const resolved = resolve(plan.source, { layers: [layer], rank, phase: "layer", allowNonFinite: false });
        const slices = rowsOf(SLICE_FIELDS, resolved.program.slices);
        const elements = slices.flatMap(({ rows, cols }, slice) =>
          [
            [0, 0],
            [rows - 1, cols - 1],
          ].map(([row = 0, col = 0]) => describeElement(plan.layout, resolved, { slice, row, col })),
        );
        const ofExperts = elements.filter(({ tensor }) => tensor.includes(".experts."));
        return new Set(ofExperts.map(({ tensor, index }) => Number(/experts\.(\d+)\./.exec(tensor)?.[1] ?? index[0])));
      });
      expect(read).toEqual([new Set([0, 1]), new Set([2])]);
    },
  );
});

describe("an element of a stacked tensor", () => {
  it.each<[ExpertForm, string, number[]]>([
    ["stacked", "gate_up_proj", [2, 51 + 7, 9]],
    ["transposed", "gate_up_proj", [2, 9, 51 + 7]],
    ["apart", "up_proj", [2, 7, 9]],
  ])("is named by its index in all of the tensor: %s", (form, tensor, index) => {
    const plan = planned(form, 2);
    const layer = plan.layout.layers.findIndex(({ name }) => name === "model.layers.1");
    const resolve = createResolver(plan.layout, layoutArena(plan.layout, 1));
    const resolved = resolve(plan.source, { layers: [layer], rank: 1, phase: "layer", allowNonFinite: false });
    const slices = rowsOf(SLICE_FIELDS, resolved.program.slices);
    // Up of rank 1's only expert: the slice that goes below gate.
    const slice = slices.findIndex(({ toRow }) => toRow === 51);
    const found = describeElement(plan.layout, resolved, { slice, row: 7, col: 9 });
    expect(found).toEqual({ tensor: `model.layers.1.mlp.experts.${tensor}`, index });
  });
});
