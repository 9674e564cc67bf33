import { describe, expect, it } from "vitest";
import type { KernelTensor, Part, Plan } from "../../orchestrator/contract/plan.js";
import { checkPlan } from "../../orchestrator/planner/check/check-plan.js";
import { type PlanRequest, planReload } from "../../orchestrator/planner/plan-reload.js";
import { expectLayercastError } from "../checkpoint/expect-error.js";
import { type Synthetic, synthesize } from "./synthetic-checkpoint.js";
import { deepseekCase, type ExpertForm, moeShapes, quantizedOnDisk, type ScaleKind } from "./synthetic-moe.js";

function planned(checkpoint: Synthetic, request: Partial<PlanRequest>): { plan: Plan; checkpoint: Synthetic } {
  const { table, config } = checkpoint;
  const asked = { tensorParallelSize: 2, expertParallel: false, scheme: "none", ignore: [], dtype: "auto" } as const;
  return { plan: planReload({ table, config, ...asked, ...request }), checkpoint };
}

const stored = (form: ExpertForm, kind: ScaleKind, request: Partial<PlanRequest> = {}) =>
  planned(quantizedOnDisk(deepseekCase(form), kind), { scheme: "as-stored", ...request });
const plain = (form: ExpertForm, sizes: { moe_intermediate_size?: number } = {}) => {
  const model = deepseekCase(form);
  const fields = { ...model.fields, ...sizes };
  return synthesize(fields, moeShapes({ ...model, fields }), { fill: false });
};

const PLANS = {
  "stacked experts": planned(plain("stacked"), {}),
  "transposed experts": planned(plain("transposed"), {}),
  "experts by rank": planned(plain("each"), { expertParallel: true, scheme: "fp8-channel" }),
  "experts made up to whole blocks": planned(plain("each", { moe_intermediate_size: 200 }), { scheme: "fp8-block" }),
  "blocks as stored": stored("each", "block"),
  "stacked rows as stored": stored("stacked", "channel"),
  "tensors as stored": stored("each", "tensor"),
  "blocks made values": stored("apart", "block", { scheme: "fp8-block", dtype: "bfloat16" }),
  "rows made values": stored("each", "channel", { scheme: "none", dtype: "bfloat16" }),
};

function kernel(plan: Plan, end: string): KernelTensor {
  const layer = plan.layout.layers.find(({ name }) => name === "model.layers.1");
  const found = layer?.kernelTensors.find(({ name }) => name.endsWith(end));
  if (found === undefined) throw new Error(`no kernel tensor ${end}`);
  return found;
}

function part(plan: Plan, end: string, index = 0): Part {
  const found = kernel(plan, end).parts[index];
  if (found === undefined) throw new Error(`${end} has no part ${index}`);
  return found;
}

function swap(numbers: number[]): void {
  const [first = -1, second = -1] = numbers;
  numbers.splice(0, 2, second, first);
}

/** What a kernel tensor of blocks says of its size. */
function resized(rows: number, cols: number): Partial<KernelTensor> {
  const scale = { name: "model.layers.1.mlp.experts.w2_weight_scale_inv", shape: [rows / 128, cols / 128] };
  return { rows, cols, shape: [rows, cols], scale };
}

function derivedOf(plan: Plan, end: string) {
  const { derived } = kernel(plan, end);
  if (derived === null) throw new Error(`${end} is not derived`);
  return derived;
}

type Corruption = [law: string, of: keyof typeof PLANS, corrupt: (plan: Plan) => void, sentence: RegExp];

const CORRUPTIONS: Corruption[] = [
  [
    "an expert's place taken by another's",
    "stacked experts",
    (plan) => swap(part(plan, "w2_weight").firsts),
    /for expert 1/,
  ],
  [
    "an expert twice",
    "experts by rank",
    (plan) => (part(plan, "w2_weight").tensors[1] = part(plan, "w2_weight").tensors[0] ?? -1),
    /is used twice/,
  ],
  [
    "an expert left out",
    "experts by rank",
    (plan) => (kernel(plan, "w2_weight").experts = { count: 2, byRank: true }),
    /has 2 matrices/,
  ],
  [
    "gate and up with one window",
    "stacked experts",
    (plan) => (part(plan, "w13_weight", 1).firsts = part(plan, "w13_weight").firsts),
    /is used twice/,
  ],
  [
    "experts cut that are whole",
    "experts by rank",
    (plan) => (part(plan, "w2_weight").rule = { kind: "columns" }),
    /of 512 columns row 0 is next/,
  ],
  [
    "whole experts given to all ranks",
    "experts by rank",
    (plan) => (kernel(plan, "w2_weight").experts = { count: 3, byRank: false }),
    /another way than the layout says/,
  ],
  [
    "cut experts given to one rank each",
    "stacked experts",
    (plan) => (kernel(plan, "w2_weight").experts = { count: 3, byRank: true }),
    /another way than the layout says/,
  ],
  [
    "experts that are not made up",
    "experts made up to whole blocks",
    (plan) => (part(plan, "w2_weight").padTo = 1),
    /w2_weight is made up to 1\./,
  ],
  [
    "experts made up where nothing shares a scale",
    "stacked experts",
    (plan) => (part(plan, "w2_weight").padTo = 128),
    /w2_weight is made up to 128\./,
  ],
  [
    "more zero rows than make up a block",
    "experts made up to whole blocks",
    (plan) => Object.assign(kernel(plan, "w2_weight"), resized(384, 128)),
    /has 384 rows, of which 256 are written/,
  ],
  [
    "more zero columns than make up a block",
    "experts made up to whole blocks",
    (plan) => Object.assign(kernel(plan, "w2_weight"), resized(256, 256)),
    /of 256 columns row 0 is next/,
  ],
  [
    "a matrix turned over",
    "transposed experts",
    (plan) => Object.assign(part(plan, "w2_weight"), { rowStride: 512, colStride: 1 }),
    /is planned as/,
  ],
  [
    "codes with another expert's scales",
    "blocks as stored",
    (plan) => swap(part(plan, "w13_weight_scale_inv").tensors),
    /for expert 0/,
  ],
  [
    "gate's codes with up's scales",
    "blocks as stored",
    (plan) => kernel(plan, "w13_weight_scale_inv").parts.reverse(),
    /gate_proj\.weight is scaled by .*up_proj/,
  ],
  [
    "codes with no scales",
    "blocks as stored",
    (plan) => (kernel(plan, "w2_weight_scale_inv").name += "_elsewhere"),
    /have no scales/,
  ],
  [
    "scales that every rank has whole",
    "blocks as stored",
    (plan) => (part(plan, "w2_weight_scale_inv").rule = { kind: "replicate" }),
    /takes row 0 of it/,
  ],
  [
    "scales of another expert in a stack",
    "stacked rows as stored",
    (plan) => swap(part(plan, "w2_weight_scale").firsts),
    /for expert 1/,
  ],
  [
    "one scale for codes with their own",
    "tensors as stored",
    (plan) => kernel(plan, "w13_weight_scale").parts.pop(),
    /is listed but not used|does not have the scale/,
  ],
  [
    "scales that nobody compares",
    "tensors as stored",
    (plan) => (kernel(plan, "w13_weight_scale").mustAgree = false),
    /takes row 0 of it with row 0 of its codes/,
  ],
  [
    "codes taken for values",
    "rows made values",
    (plan) => (part(plan, "w2_weight").scales = null),
    /scale is listed but not used/,
  ],
  [
    "codes made values as they are stored",
    "blocks as stored",
    (plan) => (plan.layout.scheme = "fp8-block"),
    /F8_E4M3 is .* under none/,
  ],
  [
    "scales of other codes",
    "blocks made values",
    (plan) => {
      const [one, other] = [part(plan, "o_proj.weight"), part(plan, "q_b_proj.weight")];
      [one.scales, other.scales] = [other.scales, one.scales];
    },
    /is scaled by/,
  ],
  [
    "latent values of two of three heads' rows",
    "stacked experts",
    (plan) => Object.assign(kernel(plan, "W_UV"), { rows: 32, shape: [2, 128, 32] }),
    /96 of 128 rows of .*kv_b_proj\.weight's heads are derived/,
  ],
  [
    "latent values of a matrix with other heads",
    "stacked experts",
    (plan) => {
      for (const name of ["W_UK_T", "W_UV"]) derivedOf(plan, name).from = kernel(plan, "fused_qkv_a_proj.weight").name;
    },
    /does not read rows/,
  ],
  [
    "latent values of a kernel tensor that is not there",
    "blocks as stored",
    (plan) => (derivedOf(plan, "W_UV").from = "x"),
    /has heads from row 64, row 0 is next/,
  ],
  [
    "latent values of another kernel tensor",
    "blocks as stored",
    (plan) => (derivedOf(plan, "W_UV").from = kernel(plan, "o_proj.weight").name),
    /has heads from row 64/,
  ],
  [
    "latent values not turned over",
    "stacked experts",
    (plan) => (derivedOf(plan, "W_UV").transposed = false),
    /does not read rows/,
  ],
];

describe("checkPlan of models with experts and latent attention", () => {
  it.each(Object.entries(PLANS))("finds nothing wrong with %s", (_, { plan, checkpoint }) => {
    expect(() => checkPlan(plan, checkpoint.table)).not.toThrow();
  });

  it.each(CORRUPTIONS)("finds %s in %s", (_, of, corrupt, sentence) => {
    const { plan, checkpoint } = structuredClone(PLANS[of]);
    corrupt(plan);
    expectLayercastError(() => checkPlan(plan, checkpoint.table), "internal", sentence);
  });

  it.each(Object.entries(PLANS))(
    "finds any number of %s that is one too high or too low",
    (_, { plan, checkpoint }) => {
      const unseen: string[] = [];
      const layer = plan.layout.layers.findIndex(({ name }) => name === "model.layers.1");
      const paths = pathsToNumbers(plan.layout.layers[layer], [layer]);
      for (const path of paths) {
        for (const delta of [-1, 1]) {
          const changed = structuredClone(plan);
          change(changed.layout.layers, path, delta);
          try {
            checkPlan(changed, checkpoint.table);
            unseen.push(`${path.join(".")} ${delta}`);
          } catch (error) {
            expectLayercastError(
              () => {
                throw error;
              },
              "internal",
              /The plan is wrong|The plan has|The arena has/,
            );
          }
        }
      }
      expect(unseen).toEqual([]);
    },
  );
});

type Path = (string | number)[];

function pathsToNumbers(value: unknown, path: Path): Path[] {
  if (typeof value === "number") return [path];
  if (typeof value !== "object" || value === null) return [];
  return Object.entries(value).flatMap(([key, inner]) => pathsToNumbers(inner, [...path, key]));
}

function change(root: unknown, path: Path, delta: number): void {
  const last = path.at(-1) ?? "";
  const holder = path.slice(0, -1).reduce((value, key) => (value as Record<string, unknown>)[key], root);
  const record = holder as Record<string, number>;
  record[last] = (record[last] ?? 0) + delta;
}
