import { describe, expect, it } from "vitest";
import type { KernelTensor, Plan } from "../../orchestrator/contract/plan.js";
import { checkPlan } from "../../orchestrator/planner/check/check-plan.js";
import { planReload } from "../../orchestrator/planner/plan-reload.js";
import { expectLayercastError } from "../checkpoint/expect-error.js";
import { LLAMA, shapesOf, synthesize } from "./synthetic-checkpoint.js";

const SHAPES = { ...shapesOf(LLAMA), "model.layers.0.self_attn.rotary_emb.inv_freq": [4] };
const { table, config } = synthesize(LLAMA, SHAPES, { fill: false });
const right = planReload({
  table,
  config,
  tensorParallelSize: 4,
  expertParallel: false,
  scheme: "fp8-channel",
  ignore: [],
  dtype: "auto",
});

function kernel(plan: Plan, name: string): KernelTensor {
  const found = plan.layout.layers.flatMap(({ kernelTensors }) => kernelTensors).find((tensor) => tensor.name === name);
  if (found === undefined) throw new Error(`no kernel tensor ${name}`);
  return found;
}

function part(plan: Plan, name: string, index = 0) {
  const found = kernel(plan, name).parts[index];
  if (found === undefined) throw new Error(`${name} has no part ${index}`);
  return found;
}

const QKV = "model.layers.0.self_attn.qkv_proj.weight";
const DOWN = "model.layers.1.mlp.down_proj.weight";
const GATE_UP = "model.layers.1.mlp.gate_up_proj.weight";

const CORRUPTIONS: [law: string, corrupt: (plan: Plan) => void, sentence: RegExp][] = [
  ["a part left out", (plan) => kernel(plan, QKV).parts.pop(), /v_proj\.weight is listed but not used|rows/],
  ["a part twice", (plan) => kernel(plan, GATE_UP).parts.push({ ...part(plan, GATE_UP) }), /is used twice/],
  ["a layer left out", (plan) => plan.layout.layers.splice(1, 1), /is listed but not used/],
  ["a row too many", (plan) => (kernel(plan, QKV).rows += 1), /but has shape/],
  [
    "rows and shape too many",
    (plan) => Object.assign(kernel(plan, QKV), { rows: 13, shape: [13, 24] }),
    /is 13 × 24 under fp8-channel, but has shape \[13,24\] and scales \[12,1\]/,
  ],
  ["columns too many", (plan) => Object.assign(kernel(plan, DOWN), { cols: 13, shape: [24, 13] }), /goes to row 0/],
  ["a column cut taken whole", (plan) => (part(plan, DOWN).rule = { kind: "replicate" }), /goes to row 0/],
  ["a column cut taken for a row cut", (plan) => (part(plan, DOWN).rule = { kind: "rows" }), /goes to row 0/],
  [
    "a norm cut by rows",
    (plan) => (part(plan, "model.norm.weight").rule = { kind: "rows" }),
    /has 24 rows, of which 6/,
  ],
  [
    "two key heads taken for one",
    (plan) => (part(plan, QKV, 1).rule = { kind: "kv_heads", heads: 1 }),
    /rows|goes to row/,
  ],
  ["other heads", (plan) => (part(plan, QKV, 1).rule = { kind: "kv_heads", heads: 3 }), /goes to row|rows|outside/],
  [
    "less of a vocabulary",
    (plan) => (part(plan, "lm_head.weight").rule = { kind: "vocabulary", paddedRows: 64 }),
    /rows/,
  ],
  [
    "a part smaller than its tensor",
    (plan) => (part(plan, QKV).rows = 12),
    /q_proj\.weight of 24 × 24 is used up to row 12/,
  ],
  [
    "parts of each other's tensors",
    (plan) => {
      const [gate, down] = [part(plan, GATE_UP), part(plan, DOWN)];
      [gate.tensors, down.tensors] = [down.tensors, gate.tensors];
    },
    /is planned as 48 × 24/,
  ],
  ["two kernel tensors of one name", (plan) => (kernel(plan, DOWN).name = QKV), /is twice in the arena/],
  [
    "a scale named as a weight",
    (plan) => (kernel(plan, DOWN).scale = { name: QKV, shape: [24, 1] }),
    /is twice in the arena/,
  ],
  ["codes without a scheme", (plan) => (kernel(plan, DOWN).scheme = "none"), /dtype F8_E4M3/],
  ["a constant beside parts", (plan) => (kernel(plan, "model.norm.weight").constant = 1), /weight is 1\./],
  ["another offset", (plan) => (plan.source.offset[3] = 8), /is not where the checkpoint has it/],
  ["another file", (plan) => (plan.source.file[3] = 2), /is not where the checkpoint has it/],
  ["another dtype", (plan) => (plan.source.dtype[3] = "F32"), /is not where the checkpoint has it/],
  [
    "a file cut short",
    (plan) => plan.source.files.splice(0, 1, { ...table.files[0], sizeBytes: 200 } as never),
    /ends at byte/,
  ],
  ["a tensor skipped and used", (plan) => plan.skipped.push({ name: "model.norm.weight", reason: "" }), /listed twice/],
  ["a tensor neither used nor skipped", (plan) => (plan.skipped = []), /inv_freq is neither used nor skipped/],
  [
    "a skipped tensor that is not there",
    (plan) => plan.skipped.push({ name: "x", reason: "" }),
    /x is not in the checkpoint/,
  ],
];

describe("checkPlan", () => {
  it("finds nothing wrong with a plan as it was made", () => {
    expect(() => checkPlan(right, table)).not.toThrow();
  });

  it.each(CORRUPTIONS)("finds %s, as an internal error with the values", (_, corrupt, sentence) => {
    const plan = structuredClone(right);
    corrupt(plan);
    expectLayercastError(() => checkPlan(plan, table), "internal", sentence);
  });

  it("finds any number of a layout that is one too high or too low", () => {
    let changed = 0;
    const positions = kernel(right, QKV).parts.flatMap((_, index) =>
      ["rows", "cols"].map((field) => [index, field] as const),
    );
    for (const [index, field] of positions) {
      for (const delta of [-1, 1]) {
        const plan = structuredClone(right);
        part(plan, QKV, index)[field as "rows" | "cols"] += delta;
        expectLayercastError(() => checkPlan(plan, table), "internal", /The plan is wrong/);
        changed++;
      }
    }
    expect(changed).toBe(12);
  });
});
