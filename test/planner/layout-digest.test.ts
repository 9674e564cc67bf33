// The layout digest is the arena's identity: two checkpoints that fill the same kernel tensors share it, however their own tensors
// are named, shaped and cut. The mapping digest tells such checkpoints apart, so that nothing resolved for one serves the other.

import { describe, expect, it } from "vitest";
import type { CheckpointTensor, Plan } from "../../orchestrator/contract/plan.js";
import { checkPlan } from "../../orchestrator/planner/check/check-plan.js";
import { layoutDifference } from "../../orchestrator/planner/layout-difference.js";
import { type PlanRequest, planReload } from "../../orchestrator/planner/plan-reload.js";
import { layoutArenas } from "../../orchestrator/program/arena-layout.js";
import { LLAMA, type Shapes, type Synthetic, shapesOf, synthesize } from "./synthetic-checkpoint.js";
import { deepseekCase, type ExpertForm, moeShapes, quantizedOnDisk } from "./synthetic-moe.js";

const FORMS: ExpertForm[] = ["each", "stacked", "transposed", "apart"];
const L0 = "model.layers.0.self_attn.";

function planOf({ table, config }: Synthetic, request: Partial<PlanRequest> = {}): Plan {
  const ranks = { tensorParallelSize: 2, expertParallel: false };
  const plan = planReload({ table, config, ...ranks, scheme: "none", ignore: [], dtype: "auto", ...request });
  checkPlan(plan, table);
  return plan;
}

function llama(extra: Shapes = {}, fields: Record<string, unknown> = {}): Synthetic {
  const config = { ...LLAMA, ...fields };
  return synthesize(config, { ...shapesOf(config), ...extra }, { fill: false });
}

function withShape(
  checkpoint: Synthetic,
  isChanged: (tensor: CheckpointTensor) => boolean,
  shape: number[],
): Synthetic {
  const tensors = [...checkpoint.table.tensors.values()].map((tensor) =>
    isChanged(tensor) ? { ...tensor, shape } : tensor,
  );
  return { ...checkpoint, table: { ...checkpoint.table, tensors: new Map(tensors.map((one) => [one.name, one])) } };
}

/** One layout digest, as many mapping digests as plans, and every rank's arena the same to the byte. */
function expectOneLayout(plans: readonly Plan[]): void {
  expect(new Set(plans.map(({ layoutDigest }) => layoutDigest)).size).toBe(1);
  expect(new Set(plans.map(({ mappingDigest }) => mappingDigest)).size).toBe(plans.length);
  const [first] = plans.map(({ layout }) => layoutArenas(layout));
  for (const { layout } of plans.slice(1)) expect(layoutArenas(layout)).toEqual(first);
}

describe("one layout digest", () => {
  it.each(["none", "fp8-channel", "fp8-block"] as const)("for experts in every form on disk, under %s", (scheme) => {
    for (const expertParallel of [false, true]) {
      const plans = FORMS.map((form) => {
        const model = deepseekCase(form);
        return planOf(synthesize(model.fields, moeShapes(model), { fill: false }), { scheme, expertParallel });
      });
      expectOneLayout(plans);
    }
  });

  it.each(["block", "channel", "tensor"] as const)("for stored codes with %s scales, each or stacked", (kind) => {
    const plans = (["each", "stacked"] as const).map((form) =>
      planOf(quantizedOnDisk(deepseekCase(form), kind), { scheme: "as-stored" }),
    );
    expectOneLayout(plans);
  });

  it("for attention scales that are not there, and for those that come, under each name and shape", () => {
    const given: Shapes[] = [
      {},
      { [`${L0}k_scale`]: [] },
      { [`${L0}attn.k_scale`]: [1] },
      { [`${L0}k_proj.k_scale`]: [], [`${L0}v_proj.v_scale`]: [] },
    ];
    expectOneLayout(given.map((scales) => planOf(llama(scales))));
  });

  it("for a stored scale of shape [] and one of shape [1]", () => {
    const stored = quantizedOnDisk(deepseekCase("each"), "tensor");
    const plans = [[], [1]].map((shape) =>
      planOf(
        withShape(stored, ({ name }) => name.endsWith("_scale"), shape),
        { scheme: "as-stored" },
      ),
    );
    expectOneLayout(plans);
  });

  it("for a vocabulary that is padded on disk to what the ranks pad it to", () => {
    expectOneLayout([planOf(llama()), planOf(llama({}, { vocab_size: 128 }))]);
  });

  it("for values that are rounded from another dtype before they are quantized", () => {
    const request = { scheme: "fp8-channel", dtype: "auto" } as const;
    const shapes = shapesOf(LLAMA);
    const norms = Object.fromEntries(
      Object.keys(shapes)
        .filter((name) => /norm|embed|lm_head/.test(name))
        .map((name) => [name, "BF16"] as const),
    );
    const plans = (["BF16", "F16"] as const).map((dtype) =>
      planOf(synthesize(LLAMA, shapes, { dtype, dtypes: norms, fill: false }), request),
    );
    expectOneLayout(plans);
  });
});

describe("another layout digest", () => {
  it("where kernel tensors of the same names and shapes hold other values of the model", () => {
    const heads = { num_key_value_heads: 4, num_attention_heads: 16, head_dim: 3, hidden_size: 48 };
    const fewer = { num_key_value_heads: 2, num_attention_heads: 8, head_dim: 6, hidden_size: 48 };
    const plans = [planOf(llama({}, heads)), planOf(llama({}, fewer))];
    const [one, other] = plans.map(({ layout }) => layoutArenas(layout));
    expect(one).toEqual(other);
    expect(new Set(plans.map(({ layoutDigest }) => layoutDigest)).size).toBe(2);
  });

  it("for another family, not for another word for the same one", () => {
    const llamas = [llama(), llama({}, { model_type: "llama_of_ours" })].map((one) => planOf(one).layoutDigest);
    const mistral = planOf(llama({}, { architectures: ["MistralForCausalLM"], model_type: "mistral" })).layoutDigest;
    expect(new Set(llamas).size).toBe(1);
    expect(llamas).not.toContain(mistral);
  });

  it("where ranks hold whole experts instead of a cut of each", () => {
    const model = deepseekCase("each");
    const checkpoint = synthesize(model.fields, moeShapes(model), { fill: false });
    const digests = [false, true].map((expertParallel) => planOf(checkpoint, { expertParallel }).layoutDigest);
    expect(new Set(digests).size).toBe(2);
  });
});

describe("layoutDifference", () => {
  it("names the kernel tensors that are no longer filled, that are added, and that change", () => {
    const one = { num_hidden_layers: 1 };
    const without = planOf(llama({}, one)).layout;
    const biased = planOf(llama({}, { ...one, mlp_bias: true })).layout;
    const quantized = planOf(llama({}, one), { scheme: "fp8-channel" }).layout;
    const biases = "model.layers.0.mlp.gate_up_proj.bias, model.layers.0.mlp.down_proj.bias";
    expect(layoutDifference(biased, without)).toBe(`it does not fill ${biases}`);
    expect(layoutDifference(without, biased)).toBe(`it adds ${biases}`);
    expect(layoutDifference(without, quantized)).toMatch(
      /it adds model\.layers\.0\.self_attn\.qkv_proj\.weight_scale.* and \d+ more; it changes .*\(BF16 \[\d+, 24\] before, now F8_E4M3/,
    );
    expect(layoutDifference(without, planOf(llama({}, one)).layout)).toBeNull();
  });
});
