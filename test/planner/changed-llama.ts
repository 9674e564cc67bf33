// Plans of a small Llama with something changed: its config, its tensors, or what is asked for.

import type { FormatDType } from "../../orchestrator/contract/dtype.js";
import { checkPlan } from "../../orchestrator/planner/check/check-plan.js";
import { type PlanRequest, planReload } from "../../orchestrator/planner/plan-reload.js";
import { LLAMA, type Shapes, shapesOf, synthesize } from "./synthetic-checkpoint.js";

export interface Change {
  /** Beside the config of LLAMA; undefined takes a field away. */
  fields?: Record<string, unknown>;
  /** Beside the tensors of LLAMA; null takes a tensor away. */
  tensors?: Record<string, number[] | null>;
  biases?: string[];
  dtype?: "BF16" | "F16" | "F32";
  dtypes?: Record<string, FormatDType>;
  request?: Partial<PlanRequest>;
}

export function requestOf({
  fields = {},
  tensors = {},
  biases = [],
  dtype = "BF16",
  dtypes = {},
  request = {},
}: Change): PlanRequest {
  const shapes: Shapes = shapesOf(LLAMA, biases);
  for (const [name, shape] of Object.entries(tensors)) {
    if (shape === null) delete shapes[name];
    else shapes[name] = shape;
  }
  const { table, config } = synthesize({ ...LLAMA, ...fields }, shapes, { dtype, dtypes, fill: false });
  return {
    table,
    config,
    tensorParallelSize: 2,
    expertParallel: false,
    scheme: "none",
    ignore: [],
    dtype: "auto",
    ...request,
  };
}

export function planned(change: Change) {
  const request = requestOf(change);
  const plan = planReload(request);
  checkPlan(plan, request.table);
  return plan;
}

export function kernelOf(change: Change, name: string) {
  const found = planned(change)
    .layout.layers.flatMap(({ kernelTensors }) => kernelTensors)
    .find((kernel) => kernel.name === name);
  if (found === undefined) throw new Error(`no kernel tensor ${name}`);
  return found;
}

export const L0 = "model.layers.0.";
