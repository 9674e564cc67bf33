// What the core says in numbers, as the sentence that a reload's record shows.

import { expect, it } from "vitest";
import type { NativeErrorCode } from "../../native/native.js";
import { LayercastError } from "../../orchestrator/contract/errors.js";
import { planReload } from "../../orchestrator/planner/plan-reload.js";
import { layoutArena } from "../../orchestrator/program/arena-layout.js";
import { explainNativeError } from "../../worker/explain-native-error.js";
import { createResolver } from "../planner/resolver.js";
import { LLAMA, shapesOf, synthesize } from "../planner/synthetic-checkpoint.js";

const { table, config } = synthesize(LLAMA, shapesOf(LLAMA), { fill: false });
const ranks = { tensorParallelSize: 2, expertParallel: false };
const plan = planReload({ table, config, ...ranks, scheme: "none", ignore: [], dtype: "auto" });
const resolve = createResolver(plan.layout, layoutArena(plan.layout, 1));
const resolved = resolve(plan.source, { layers: [1], rank: 1, phase: "layer", allowNonFinite: false });

/** The slices of a layer in the order of its kernel tensors: norm, then q, k and v. */
function explain(code: NativeErrorCode, details: Record<string, number>): LayercastError {
  const error = explainNativeError(
    Object.assign(new Error("the core's words"), { code, details }),
    plan,
    resolved,
    "layer 0",
  );
  if (!(error instanceof LayercastError)) throw error;
  return error;
}

it("scales that differ are named in pairs, with the recipe that would work", () => {
  const error = explain("NATIVE_SCALES_DIFFER", { slice: 1, with: 2 });
  const tensors = ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"];
  expect(error).toMatchObject({ code: "unsupported_recipe", retryable: false, details: { tensors } });
  expect(error.message).toMatch(/^\S+q_proj.weight and \S+k_proj.weight differ/);
  expect(error.message).toContain("dtype bfloat16 and recipe fp8-tensor");
});

it("a value that is not finite is named by its tensor and its index in all of it", () => {
  const error = explain("NATIVE_NON_FINITE", { slice: 1, row: 2, col: 5 });
  // Of 24 rows of q rank 1 of 2 has the last 12.
  expect(error).toMatchObject({
    code: "non_finite_weights",
    details: { tensor: "model.layers.0.self_attn.q_proj.weight", index: [14, 5] },
  });
});

it("what is not the core's stays as it is", () => {
  const error = new Error("other");
  expect(explainNativeError(error, plan, resolved, "layer 0")).toBe(error);
});
