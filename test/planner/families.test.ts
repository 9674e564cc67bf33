// What each model family says of names, shapes and skipped tensors. The bytes are those of the goldens (goldens.test.ts); here
// checkpoints of the fixtures are renamed, thinned out and mixed up, and only planned.

import path from "node:path";
import { describe, expect, it } from "vitest";
import { readCheckpointTable } from "../../orchestrator/checkpoint/checkpoint-table.js";
import { type ModelConfig, parseModelConfig } from "../../orchestrator/checkpoint/model-config.js";
import type { FormatDType } from "../../orchestrator/contract/dtype.js";
import type { CheckpointTable, KernelTensor, Plan } from "../../orchestrator/contract/plan.js";
import { checkPlan } from "../../orchestrator/planner/check/check-plan.js";
import { type PlanRequest, planReload } from "../../orchestrator/planner/plan-reload.js";
import { expectLayercastError } from "../checkpoint/expect-error.js";
import { type Shapes, synthesize } from "./synthetic-checkpoint.js";

const FIXTURES = path.resolve(import.meta.dirname, "../fixtures");

interface Checkpoint {
  table: CheckpointTable;
  config: ModelConfig;
}

function load(name: string): Promise<Checkpoint> {
  return readCheckpointTable(path.join(FIXTURES, "checkpoints", name, "v1"), { allowedRoots: [FIXTURES] });
}

interface Change {
  /** Of config.json; undefined takes a field away. */
  fields?: Record<string, unknown>;
  /** A tensor's new name; null takes it away. */
  rename?: (name: string) => string | null;
  add?: Record<string, number[]>;
  addedDType?: FormatDType;
}

function changed({ table, config }: Checkpoint, change: Change): Checkpoint {
  const tensors: CheckpointTable["tensors"] = new Map();
  for (const tensor of table.tensors.values()) {
    const name = change.rename === undefined ? tensor.name : change.rename(tensor.name);
    if (name !== null) tensors.set(name, { ...tensor, name });
  }
  for (const [name, shape] of Object.entries(change.add ?? {}))
    tensors.set(name, { name, shape, dtype: change.addedDType ?? "BF16", file: 0, offset: 4096 });
  const fields = JSON.stringify({ ...config.fields, ...change.fields });
  return { table: { ...table, tensors }, config: parseModelConfig(fields, config.file) };
}

function plan(checkpoint: Checkpoint, request: Partial<PlanRequest> = {}): Plan {
  const made = planReload({
    ...checkpoint,
    tensorParallelSize: 1,
    expertParallel: false,
    scheme: "none",
    ignore: [],
    dtype: "auto",
    ...request,
  });
  checkPlan(made, checkpoint.table);
  return made;
}

function kernels({ layout }: Plan): KernelTensor[] {
  return layout.layers.flatMap(({ kernelTensors }) => kernelTensors);
}

function kernel(made: Plan, name: string): KernelTensor {
  const found = kernels(made).find((candidate) => candidate.name === name);
  if (found === undefined) throw new Error(`the plan has no ${name}`);
  return found;
}

/** Names and shapes: all that does not depend on where the checkpoint has its tensors. */
function held(made: Plan): Record<string, unknown[]> {
  return Object.fromEntries(kernels(made).map(({ name, dtype, shape, experts }) => [name, [dtype, shape, experts]]));
}

const L0 = "model.layers.0.";
const L1 = "model.layers.1.";

describe("a family is found", () => {
  it.each([
    ["tiny-mixtral", "mixtral"],
    ["tiny-qwen2-moe", "qwen2_moe"],
    ["tiny-qwen3-moe", "qwen3_moe"],
    ["tiny-deepseek-v2", "deepseek_v2"],
    ["tiny-deepseek-v3", "deepseek_v3"],
    ["tiny-deepseek-v3", "kimi_k2"],
    ["tiny-gemma2", "gemma2"],
    ["tiny-gemma3", "gemma3"],
    ["tiny-phi3", "phi3"],
  ])("for %s by model_type %s where architectures is absent", async (name, modelType) => {
    const checkpoint = await load(name);
    const nameless = changed(checkpoint, { fields: { architectures: undefined, model_type: modelType } });
    expect(held(plan(nameless))).toEqual(held(plan(checkpoint)));
  });

  it("for Kimi K2, which has the tensors of DeepSeek-V3, under both of its architectures", async () => {
    const checkpoint = await load("tiny-deepseek-v3");
    for (const architecture of ["KimiK2ForCausalLM", "DeepseekV3ForCausalLM"]) {
      const kimi = changed(checkpoint, { fields: { architectures: [architecture], model_type: "kimi_k2" } });
      expect(held(plan(kimi))).toEqual(held(plan(checkpoint)));
    }
  });
});

describe("a model that was saved while it was wrapped", () => {
  it.each([
    ["tiny-qwen3", "FSDPQwen3ForCausalLM"],
    ["tiny-qwen3-moe", "FSDPQwen3MoeForCausalLM"],
    ["tiny-llama", "FSDPLlamaForCausalLM"],
    ["tiny-gemma3", "FSDPGemma3ForConditionalGeneration"],
    ["tiny-deepseek-v3", "FullyShardedDataParallel"],
  ])("%s as %s, is what its model_type says", async (name, architecture) => {
    const checkpoint = await load(name);
    const wrapped = changed(checkpoint, { fields: { architectures: [architecture] } });
    expect(plan(wrapped).layoutDigest).toBe(plan(checkpoint).layoutDigest);
    const nameless = changed(wrapped, { fields: { model_type: undefined } });
    expectLayercastError(
      () => plan(nameless),
      "unsupported_architecture",
      new RegExp(`"${architecture}" is not known`),
    );
  });

  it.each(["Qwen3ForSequenceClassification", "Qwen3Model", "FSDPLlamaForCausalLM", "Qwen3ForCausalLMEagle3"])(
    "is not any other that has a known model_type: %s",
    async (architecture) => {
      const other = changed(await load("tiny-qwen3"), { fields: { architectures: [architecture] } });
      expectLayercastError(() => plan(other), "unsupported_architecture", new RegExp(`"${architecture}" is not known`));
    },
  );
});

const QKV_BIAS = /self_attn\.[qkv]_proj\.bias$/;

describe.each(["tiny-qwen2-fp8", "tiny-qwen2-moe"])("the biases of %s", (name) => {
  const request = { dtype: "bfloat16" } as const;

  it("of q, k and v are demanded in every layer, though no field of the config speaks of them", async () => {
    const checkpoint = await load(name);
    const lost = [QKV_BIAS, new RegExp(`^${L1}.*${QKV_BIAS.source}`), new RegExp(`^${L1}self_attn\\.k_proj\\.bias$`)];
    for (const which of lost) {
      const less = changed(checkpoint, { rename: (tensor) => (which.test(tensor) ? null : tensor) });
      expectLayercastError(() => plan(less, request), "tensor_missing", /k_proj\.bias/);
    }
  });

  it("are those of q, k and v alone", async () => {
    const checkpoint = await load(name);
    const biases = kernels(plan(checkpoint, request)).flatMap((one) => (one.name.endsWith(".bias") ? [one.name] : []));
    expect(biases).toEqual([L0, L1].map((prefix) => `${prefix}self_attn.qkv_proj.bias`));
    const add = { [`${L0}self_attn.o_proj.bias`]: [Number(checkpoint.config.fields.hidden_size)] };
    expectLayercastError(() => plan(changed(checkpoint, { add }), request), "tensor_unexpected", /o_proj\.bias/);
  });
});

describe("a Qwen2-MoE", () => {
  it("has no biases where the config says qkv_bias: false", async () => {
    const checkpoint = await load("tiny-qwen2-moe");
    const rename = (tensor: string) => (QKV_BIAS.test(tensor) ? null : tensor);
    const made = plan(changed(checkpoint, { fields: { qkv_bias: false }, rename }));
    expect(kernels(made).filter((one) => one.name.endsWith(".bias"))).toEqual([]);
  });

  it("has a shared expert where the config does not say its size", async () => {
    const fields = { shared_expert_intermediate_size: undefined };
    const rename = (tensor: string) => (tensor.includes(".shared_expert") ? null : tensor);
    const lost = changed(await load("tiny-qwen2-moe"), { fields, rename });
    expectLayercastError(() => plan(lost), "tensor_missing", /shared_expert\.gate_proj\.weight/);
  });
});

describe.each([
  ["tiny-llama", "attention_bias", ["q", "k", "v", "o"].map((part) => `self_attn.${part}_proj`)],
  ["tiny-llama", "mlp_bias", ["gate", "up", "down"].map((part) => `mlp.${part}_proj`)],
  ["tiny-qwen3", "attention_bias", ["q", "k", "v", "o"].map((part) => `self_attn.${part}_proj`)],
  ["tiny-qwen3-moe", "attention_bias", ["q", "k", "v", "o"].map((part) => `self_attn.${part}_proj`)],
  ["tiny-gemma2", "attention_bias", ["q", "k", "v", "o"].map((part) => `self_attn.${part}_proj`)],
])("of %s, %s", (name, field, linears) => {
  it("demands biases, and they are unexpected without it", async () => {
    const checkpoint = await load(name);
    const layers = Number(checkpoint.config.fields.num_hidden_layers);
    const weights = [...checkpoint.table.tensors.values()].filter(({ name: one }) =>
      linears.some((linear) => one.endsWith(`${linear}.weight`)),
    );
    expect(weights).toHaveLength(layers * linears.length);
    const add = Object.fromEntries(
      weights.map(({ name: one, shape }) => [one.replace(/weight$/, "bias"), [shape[0] ?? 0]]),
    );
    const fields = { [field]: true };
    expectLayercastError(() => plan(changed(checkpoint, { fields })), "tensor_missing", /_proj\.bias/);
    expectLayercastError(() => plan(changed(checkpoint, { add })), "tensor_unexpected", /_proj\.bias/);
    const biases = kernels(plan(changed(checkpoint, { fields, add }))).filter((one) => one.name.endsWith(".bias"));
    expect(biases).toHaveLength(layers * 2);
  });
});

describe.each(["tiny-phi3", "tiny-mixtral"])("a bias in %s", (name) => {
  it("has no place, whatever the config says", async () => {
    const checkpoint = changed(await load(name), {
      fields: { attention_bias: true },
      add: { [`${L0}self_attn.o_proj.bias`]: [1] },
    });
    expectLayercastError(() => plan(checkpoint), "tensor_unexpected", /o_proj\.bias/);
  });
});

describe("experts", () => {
  it.each(["num_experts", "num_local_experts", "n_routed_experts"])(
    "are counted by %s, whichever is there",
    async (field) => {
      const none = { num_experts: undefined, num_local_experts: undefined, n_routed_experts: undefined };
      const checkpoint = changed(await load("tiny-qwen3-moe"), { fields: { ...none, [field]: 8 } });
      expect(kernel(plan(checkpoint), `${L0}mlp.experts.w13_weight`)).toMatchObject({
        shape: [128, 128],
        experts: { count: 8, byRank: false },
      });
      const uncounted = changed(checkpoint, { fields: none });
      expectLayercastError(() => plan(uncounted), "checkpoint_invalid", /must give num_experts/);
    },
  );

  it("must all be there, and no others", async () => {
    const checkpoint = await load("tiny-mixtral");
    const lacking = `${L1}block_sparse_moe.experts.1.w3.weight`;
    const thinned = changed(checkpoint, { rename: (name) => (name === lacking ? null : name) });
    expectLayercastError(
      () => plan(thinned),
      "tensor_missing",
      /lacks 1 .*layers\.1\.block_sparse_moe\.experts\.1\.w3/,
    );
    const fewer = changed(checkpoint, { fields: { num_local_experts: 2 } });
    expectLayercastError(() => plan(fewer), "shape_mismatch", /layers\.0\.block_sparse_moe\.gate\.weight/);
    const name = `${L0}block_sparse_moe.experts.3.w1.weight`;
    const more = changed(checkpoint, { add: { [name]: [72, 24] } });
    expectLayercastError(() => plan(more), "tensor_unexpected", /layers\.0\.block_sparse_moe\.experts\.3\.w1/);
  });

  it("of Mixtral keep their kernel names where the checkpoint says mlp. for block_sparse_moe.", async () => {
    const checkpoint = await load("tiny-mixtral");
    const renamed = changed(checkpoint, { rename: (name) => name.replace("block_sparse_moe.", "mlp.") });
    expect(held(plan(renamed))).toEqual(held(plan(checkpoint)));
  });

  it("have one place each, however they are stored: the views of the stacked forms", async () => {
    const made = plan(await load("tiny-qwen3-moe-stacked"));
    const views = (name: string) =>
      kernel(made, name).parts.map(({ firsts, rowStride, colStride }) => ({ firsts, rowStride, colStride }));
    const [each, half] = [48 * 48, 24 * 48];
    // [E, 2·I, H]: up's rows follow gate's.
    expect(views(`${L0}mlp.experts.w13_weight`)).toEqual([
      { firsts: [0, each, 2 * each], rowStride: 48, colStride: 1 },
      { firsts: [half, each + half, 2 * each + half], rowStride: 48, colStride: 1 },
    ]);
    // [E, H, 2·I], as square: down is [E, I, H], and up's columns follow gate's.
    expect(views(`${L1}mlp.experts.w13_weight`)).toEqual([
      { firsts: [0, each, 2 * each], rowStride: 1, colStride: 48 },
      { firsts: [24, each + 24, 2 * each + 24], rowStride: 1, colStride: 48 },
    ]);
    expect(views(`${L1}mlp.experts.w2_weight`)).toEqual([{ firsts: [0, half, 2 * half], rowStride: 1, colStride: 48 }]);
    // Gate and up stacked apart.
    const apart = { firsts: [0, half, 2 * half], rowStride: 48, colStride: 1 };
    expect(views("model.layers.2.mlp.experts.w13_weight")).toEqual([apart, apart]);
  });

  it.each([
    ["together", 8, { gate_up_proj: [2, 16, 8], down_proj: [2, 8, 8] }, false],
    ["together, transposed", 8, { gate_up_proj: [2, 8, 16], down_proj: [2, 8, 8] }, true],
    ["apart", 8, { gate_proj: [2, 8, 8], up_proj: [2, 8, 8], down_proj: [2, 8, 8] }, false],
    ["apart, transposed", 6, { gate_proj: [2, 8, 6], up_proj: [2, 8, 6], down_proj: [2, 6, 8] }, true],
  ])("stacked %s, each of %i rows of 8, are transposed only where shapes say so", (_, size, stacks, transposed) => {
    const fields = {
      architectures: ["Qwen3MoeForCausalLM"],
      model_type: "qwen3_moe",
      hidden_size: 8,
      moe_intermediate_size: size,
      num_experts: 2,
      num_attention_heads: 1,
      num_hidden_layers: 1,
      vocab_size: 8,
      tie_word_embeddings: true,
    };
    const shapes: Shapes = { "model.embed_tokens.weight": [8, 8], "model.norm.weight": [8] };
    for (const norm of ["input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"])
      shapes[`${L0}${norm}.weight`] = [8];
    for (const linear of ["q_proj", "k_proj", "v_proj", "o_proj"]) shapes[`${L0}self_attn.${linear}.weight`] = [8, 8];
    shapes[`${L0}mlp.gate.weight`] = [2, 8];
    for (const [name, shape] of Object.entries(stacks)) shapes[`${L0}mlp.experts.${name}`] = shape;
    const made = plan(synthesize(fields, shapes));
    for (const name of ["w13_weight", "w2_weight"]) {
      for (const { rowStride } of kernel(made, `${L0}mlp.experts.${name}`).parts)
        expect(rowStride === 1).toBe(transposed);
    }
  });

  it("stacked under a name that ends in .weight are the same", async () => {
    const checkpoint = await load("tiny-qwen3-moe-stacked");
    const suffixed = (name: string) => name.replace(/(experts\.\w+_proj)$/, "$1.weight");
    expect(held(plan(changed(checkpoint, { rename: suffixed })))).toEqual(held(plan(checkpoint)));
  });

  it.each([
    ["decoder_sparse_step 2", { decoder_sparse_step: 2, mlp_only_layers: [] }, [false, true]],
    ["mlp_only_layers [1]", { decoder_sparse_step: 1, mlp_only_layers: [1] }, [true, false]],
    ["both, which name all", { decoder_sparse_step: 2, mlp_only_layers: [1] }, [false, false]],
    ["neither", { decoder_sparse_step: undefined, mlp_only_layers: undefined }, [true, true]],
  ])("of Qwen are in the layers that %s leaves", async (_, fields, expected) => {
    const dense = { "gate_proj.weight": [256, 128], "up_proj.weight": [256, 128], "down_proj.weight": [128, 256] };
    const layers = expected.flatMap((sparse, index) => (sparse ? [] : [`model.layers.${index}.mlp.`]));
    const checkpoint = changed(await load("tiny-qwen3-moe"), {
      fields,
      rename: (name) => (layers.some((prefix) => name.startsWith(prefix)) ? null : name),
      add: Object.fromEntries(
        layers.flatMap((prefix) => Object.entries(dense).map(([name, shape]) => [prefix + name, shape])),
      ),
    });
    const names = kernels(plan(checkpoint)).map(({ name }) => name);
    expect([L0, L1].map((prefix) => names.includes(`${prefix}mlp.experts.w13_weight`))).toEqual(expected);
    expect([L0, L1].map((prefix) => names.includes(`${prefix}mlp.gate_up_proj.weight`))).toEqual(
      expected.map((sparse) => !sparse),
    );
  });

  it.each([
    ["first_k_dense_replace", { first_k_dense_replace: 2 }],
    ["moe_layer_freq", { first_k_dense_replace: 0, moe_layer_freq: 2 }],
    ["no n_routed_experts", { n_routed_experts: null }],
  ])("of DeepSeek are not looked for where %s says dense", async (_, fields) => {
    const checkpoint = changed(await load("tiny-deepseek-v2"), { fields });
    expectLayercastError(() => plan(checkpoint), "tensor_missing", /layers\.[01]\.mlp\./);
  });

  it("of Qwen2-MoE are beside a shared one, whose gate is whole and never quantized", async () => {
    const made = plan(await load("tiny-qwen2-moe"), { scheme: "fp8-channel", tensorParallelSize: 2 });
    expect(kernel(made, `${L1}mlp.shared_expert.gate_up_proj.weight`)).toMatchObject({
      shape: [72, 24],
      dtype: "F8_E4M3",
    });
    expect(kernel(made, `${L1}mlp.shared_expert_gate.weight`)).toMatchObject({ shape: [1, 24], dtype: "BF16" });
    expect(kernel(made, `${L1}mlp.gate.weight`)).toMatchObject({ shape: [4, 24], dtype: "BF16" });
  });

  it.each([
    ["mlp_only_layers", { mlp_only_layers: "0" }],
    ["mlp_only_layers", { mlp_only_layers: [-1] }],
    ["decoder_sparse_step", { decoder_sparse_step: 0 }],
    ["num_local_experts", { num_local_experts: 2.5 }],
    ["moe_intermediate_size", { moe_intermediate_size: undefined }],
  ])("a config whose %s is wrong is refused", async (field, fields) => {
    const checkpoint = changed(await load("tiny-qwen3-moe"), { fields });
    expectLayercastError(() => plan(checkpoint), "checkpoint_invalid", new RegExp(`must give ${field}`));
  });
});

describe("DeepSeek", () => {
  it("has its correction bias as F32 whatever dtype is asked for", async () => {
    const checkpoint = await load("tiny-deepseek-v3");
    const bias = `${L1}mlp.gate.e_score_correction_bias`;
    for (const dtype of ["auto", "float16"] as const)
      expect(kernel(plan(checkpoint, { dtype }), bias)).toMatchObject({ dtype: "F32", roundTo: null, shape: [8] });
  });

  it("of the third generation always has a correction bias, and of the second where the config says noaux_tc", async () => {
    const bias = `${L1}mlp.gate.e_score_correction_bias`;
    const third = await load("tiny-deepseek-v3");
    for (const model_type of ["deepseek_v3", "kimi_k2"]) {
      for (const topk_method of [undefined, "noaux_tc"]) {
        const fields = { architectures: undefined, model_type, topk_method };
        expect(kernels(plan(changed(third, { fields }))).map(({ name }) => name)).toContain(bias);
        const without = changed(third, { fields, rename: (name) => (name === bias ? null : name) });
        expectLayercastError(() => plan(without), "tensor_missing", /lacks 1 .*e_score_correction_bias/);
      }
    }
    const second = await load("tiny-deepseek-v2");
    const demanding = { topk_method: "noaux_tc" };
    expect(kernels(plan(second)).map(({ name }) => name)).not.toContain(bias);
    expectLayercastError(() => plan(changed(second, { fields: demanding })), "tensor_missing", /correction_bias/);
    const count = Number(second.config.fields.n_routed_experts);
    const added = changed(second, { fields: demanding, add: { [bias]: [count] } });
    expect(kernel(plan(added), bias)).toMatchObject({ dtype: "F32", shape: [count] });
    expectLayercastError(() => plan(changed(second, { add: { [bias]: [count] } })), "tensor_unexpected", /correction/);
  });

  it("derives W_UK_T and W_UV of all heads of a rank, keys and values of different sizes", async () => {
    const made = plan(await load("tiny-deepseek-v2"), { tensorParallelSize: 2 });
    const from = `${L0}self_attn.kv_b_proj.weight`;
    expect(kernel(made, from).shape).toEqual([2 * (14 + 22), 18]);
    expect(kernel(made, `${L0}self_attn.mla_attn.W_UK_T`)).toMatchObject({
      shape: [2, 14, 18],
      phase: "finalize",
      derived: { from, heads: 2, headRows: 36, firstRow: 0, transposed: false },
    });
    expect(kernel(made, `${L0}self_attn.mla_attn.W_UV`)).toMatchObject({
      shape: [2, 18, 22],
      phase: "finalize",
      derived: { from, heads: 2, headRows: 36, firstRow: 14, transposed: true },
    });
  });

  it("takes an absent q_lora_rank for null", async () => {
    const checkpoint = await load("tiny-deepseek-v2");
    const absent = changed(checkpoint, { fields: { q_lora_rank: undefined } });
    expect(held(plan(absent))).toEqual(held(plan(checkpoint)));
    expect(kernel(plan(absent), `${L0}self_attn.q_proj.weight`).shape).toEqual([4 * (14 + 6), 24]);
  });

  it("has the biases that attention_bias demands: fused and whole on every rank", async () => {
    const checkpoint = changed(await load("tiny-deepseek-v3"), { fields: { attention_bias: true } });
    expectLayercastError(() => plan(checkpoint), "tensor_missing", /q_a_proj\.bias/);
    const add = Object.fromEntries(
      [L0, L1].flatMap((prefix) => [
        [`${prefix}self_attn.q_a_proj.bias`, [64]],
        [`${prefix}self_attn.kv_a_proj_with_mqa.bias`, [80]],
        [`${prefix}self_attn.o_proj.bias`, [128]],
      ]),
    );
    const made = plan(changed(checkpoint, { add }), { tensorParallelSize: 2 });
    expect(kernel(made, `${L1}self_attn.fused_qkv_a_proj.bias`).shape).toEqual([144]);
    expect(kernel(made, `${L1}self_attn.o_proj.bias`).shape).toEqual([128]);
  });

  it("is refused where ranks do not divide its heads", async () => {
    const checkpoint = await load("tiny-deepseek-v2");
    expectLayercastError(() => plan(checkpoint, { tensorParallelSize: 8 }), "indivisible", /num_attention_heads is 4/);
  });

  it.each(["tiny-qwen2-moe", "tiny-deepseek-v2", "tiny-phi3"])(
    "of %s has no layers past its config's: it has too few",
    async (name) => {
      const checkpoint = await load(name);
      expectLayercastError(
        () => plan(changed(checkpoint, { add: { "model.layers.2.input_layernorm.weight": [4] } })),
        "tensor_unexpected",
        /model\.layers\.2\.input_layernorm\.weight/,
      );
    },
  );

  it("skips the layers of multi-token prediction, by name", async () => {
    const extra = ["model.layers.2.eh_proj.weight", "model.layers.99999999999999999999.x"];
    const add = Object.fromEntries(extra.map((name) => [name, [4, 4]]));
    const { skipped } = plan(changed(await load("tiny-deepseek-v3"), { add }));
    expect(skipped.map(({ name }) => name).sort()).toEqual(extra);
    expect(skipped[0]?.reason).toMatch(/past num_hidden_layers 2 .*multi-token prediction/);
  });
});

describe("the true sizes of a published model", () => {
  it("of DeepSeek-V3 on 8 ranks, in a sparse layer", () => {
    const fields = {
      architectures: ["DeepseekV3ForCausalLM"],
      model_type: "deepseek_v3",
      hidden_size: 7168,
      intermediate_size: 18432,
      moe_intermediate_size: 2048,
      num_attention_heads: 128,
      q_lora_rank: 1536,
      kv_lora_rank: 512,
      qk_nope_head_dim: 128,
      qk_rope_head_dim: 64,
      v_head_dim: 128,
      n_routed_experts: 256,
      n_shared_experts: 1,
      first_k_dense_replace: 0,
      num_hidden_layers: 1,
      vocab_size: 129280,
      topk_method: "noaux_tc",
    };
    const attention: Shapes = {
      q_a_proj: [1536, 7168],
      q_a_layernorm: [1536],
      q_b_proj: [24576, 1536],
      kv_a_proj_with_mqa: [576, 7168],
      kv_a_layernorm: [512],
      kv_b_proj: [32768, 512],
      o_proj: [7168, 16384],
    };
    const experts = ["shared_experts", ...Array.from({ length: 256 }, (_, expert) => `experts.${expert}`)];
    const shapes: Shapes = {
      "model.embed_tokens.weight": [129280, 7168],
      "model.norm.weight": [7168],
      "lm_head.weight": [129280, 7168],
      [`${L0}input_layernorm.weight`]: [7168],
      [`${L0}post_attention_layernorm.weight`]: [7168],
      [`${L0}mlp.gate.weight`]: [256, 7168],
      [`${L0}mlp.gate.e_score_correction_bias`]: [256],
    };
    for (const [name, shape] of Object.entries(attention)) shapes[`${L0}self_attn.${name}.weight`] = shape;
    for (const expert of experts) {
      shapes[`${L0}mlp.${expert}.gate_proj.weight`] = [2048, 7168];
      shapes[`${L0}mlp.${expert}.up_proj.weight`] = [2048, 7168];
      shapes[`${L0}mlp.${expert}.down_proj.weight`] = [7168, 2048];
    }
    const made = plan(synthesize(fields, shapes, { fill: false }), { tensorParallelSize: 8, scheme: "fp8-block" });
    const shape = (name: string) => kernel(made, L0 + name).shape;
    expect(shape("self_attn.fused_qkv_a_proj.weight")).toEqual([1536 + 576, 7168]);
    expect(kernel(made, `${L0}self_attn.fused_qkv_a_proj.weight`).scale?.shape).toEqual([17, 56]);
    expect(shape("self_attn.q_b_proj.weight")).toEqual([16 * 192, 1536]);
    expect(shape("self_attn.kv_b_proj.weight")).toEqual([16 * 256, 512]);
    expect(shape("self_attn.o_proj.weight")).toEqual([7168, 2048]);
    expect(shape("self_attn.mla_attn.W_UK_T")).toEqual([16, 128, 512]);
    expect(shape("self_attn.mla_attn.W_UV")).toEqual([16, 512, 128]);
    expect(shape("mlp.experts.w13_weight")).toEqual([512, 7168]);
    expect(shape("mlp.experts.w2_weight")).toEqual([7168, 256]);
    expect(shape("mlp.shared_experts.gate_up_proj.weight")).toEqual([512, 7168]);
  });
});

describe("attention scales", () => {
  it.each([
    ["tiny-qwen3-moe", "attn"],
    ["tiny-deepseek-v3", "mla_attn"],
  ])("of %s come from every name they are written with, and are F32 scalars of %s", async (name, kernelModule) => {
    const checkpoint = await load(name);
    const projected = (part: "k" | "v") => ["", `${part}_proj.`, "qkv_proj."].map((module) => `${module}${part}_scale`);
    const sources: Record<string, string[]> = {
      q_scale: ["q_scale", "attn.q_scale", "q_proj.output_scale"],
      k_scale: [...projected("k"), "attn.k_scale", "k_proj.output_scale", "k_cache.scale", "kv_scale"],
      v_scale: [...projected("v"), "attn.v_scale", "v_proj.output_scale", "v_cache.scale", "kv_scale"],
      prob_scale: ["attn.prob_scale", "prob_output_scale"],
    };
    if (kernelModule === "mla_attn")
      for (const [scale, names] of Object.entries(sources))
        names.push(`mla_attn.${scale}`, `mla_attn.mla_attn.${scale}`);
    for (const [scale, names] of Object.entries(sources)) {
      for (const onDisk of names) {
        const add = { [`${L1}self_attn.${onDisk}`]: onDisk.startsWith("attn.") ? [1] : [] };
        const made = plan(changed(checkpoint, { add }));
        const found = kernel(made, `${L1}self_attn.${kernelModule}.${scale}`);
        expect(found).toMatchObject({ dtype: "F32", shape: [], constant: null, mustBePositive: true });
        const tensor = made.layout.checkpointTensors[found.parts[0]?.tensors[0] ?? -1];
        expect(tensor?.name).toBe(`${L1}self_attn.${onDisk}`);
        expect(kernel(made, `${L0}self_attn.${kernelModule}.${scale}`).constant).toBe(1);
      }
    }
  });

  const givenBy = async (...names: string[]) => {
    const add = Object.fromEntries(names.map((name) => [`${L1}self_attn.${name}`, []]));
    const made = plan(changed(await load("tiny-qwen3-moe"), { add }));
    const sources = ["q_scale", "k_scale", "v_scale", "prob_scale"].map((scale) => {
      const [part] = kernel(made, `${L1}self_attn.attn.${scale}`).parts;
      return made.layout.checkpointTensors[part?.tensors[0] ?? -1]?.name.slice(`${L1}self_attn.`.length) ?? 1;
    });
    return { sources, skipped: made.skipped.map(({ name }) => name.slice(`${L1}self_attn.`.length)) };
  };

  it("of keys alone are those of values too; of values alone they are no others'", async () => {
    expect((await givenBy("k_proj.output_scale")).sources).toEqual([
      1,
      "k_proj.output_scale",
      "k_proj.output_scale",
      1,
    ]);
    expect((await givenBy("qkv_proj.v_scale")).sources).toEqual([1, 1, "qkv_proj.v_scale", 1]);
    expect((await givenBy("kv_scale", "v_scale")).sources).toEqual([1, "kv_scale", "v_scale", 1]);
  });

  it.each([
    ["k_scale", "qkv_proj.k_scale"],
    ["v_proj.v_scale", "v_proj.output_scale"],
    ["attn.prob_scale", "prob_output_scale"],
    ["k_scale", "kv_scale"],
  ])("%s and %s are one scale: a checkpoint has one of the two", async (one, other) => {
    await expect(givenBy(one, other)).rejects.toMatchObject({
      code: "tensor_unexpected",
      message: expect.stringContaining(other),
    });
  });

  it("have no zero points beside them that are loaded", async () => {
    const zeroPoints = ["k_zero_point", "attn.v_zero_point"];
    expect((await givenBy("k_scale", ...zeroPoints)).skipped.toSorted()).toEqual(zeroPoints.toSorted());
  });
});

describe("Gemma", () => {
  it("has four norms, and in its third generation norms over heads", async () => {
    const second = kernels(plan(await load("tiny-gemma2"))).map(({ name }) => name);
    const third = kernels(plan(await load("tiny-gemma3"))).map(({ name }) => name);
    for (const norm of ["input", "post_attention", "pre_feedforward", "post_feedforward"]) {
      expect(second).toContain(`${L1}${norm}_layernorm.weight`);
      expect(third).toContain(`${L1}${norm}_layernorm.weight`);
    }
    for (const norm of ["q_norm", "k_norm"]) {
      expect(second).not.toContain(`${L1}self_attn.${norm}.weight`);
      expect(third).toContain(`${L1}self_attn.${norm}.weight`);
    }
  });

  it("is tied unless the config says otherwise", async () => {
    const checkpoint = await load("tiny-gemma2");
    expect(kernels(plan(checkpoint)).map(({ name }) => name)).not.toContain("lm_head.weight");
    const untied = changed(checkpoint, { fields: { tie_word_embeddings: false } });
    expectLayercastError(() => plan(untied), "tensor_missing", /lm_head\.weight/);
  });

  it("that sees has plain kernel names, whatever its tensors' prefix is", async () => {
    const checkpoint = await load("tiny-gemma3");
    const expected = held(plan(checkpoint));
    expect(Object.keys(expected).every((name) => name.startsWith("model."))).toBe(true);
    const newer = (name: string) =>
      /^(vision|multi)/.test(name)
        ? `model.${name}`
        : name.replace("language_model.model.", "model.language_model.").replace("language_model.lm_head", "lm_head");
    expect(held(plan(changed(checkpoint, { rename: newer })))).toEqual(expected);
    const plain = (name: string) => name.replace("language_model.", "");
    expect(held(plan(changed(checkpoint, { rename: plain })))).toEqual(expected);
  });

  it("that sees loads its text model only, and names the rest as skipped", async () => {
    const checkpoint = changed(await load("tiny-gemma3"), {
      add: {
        "language_model.model.rotary_emb.inv_freq": [4],
      },
    });
    expect(plan(checkpoint).skipped).toEqual([
      { name: "language_model.lm_head.weight", reason: expect.stringMatching(/^tied: /) },
      { name: "multi_modal_projector.mm_input_projection_weight", reason: expect.stringMatching(/vision tower/) },
      {
        name: "vision_tower.vision_model.encoder.layers.0.layer_norm1.weight",
        reason: expect.stringMatching(/vision tower/),
      },
      { name: "language_model.model.rotary_emb.inv_freq", reason: expect.stringMatching(/rotary/) },
    ]);
  });

  it("that sees must say in text_config what its text model is", async () => {
    const checkpoint = changed(await load("tiny-gemma3"), { fields: { text_config: 3 } });
    expectLayercastError(() => plan(checkpoint), "checkpoint_invalid", /must give text_config as an object/);
  });

  it("only is where a vision tower is skipped", async () => {
    const add = { "vision_tower.patch.weight": [4, 4] };
    const checkpoint = changed(await load("tiny-phi3"), { add });
    expectLayercastError(() => plan(checkpoint), "tensor_unexpected", /vision_tower\.patch\.weight/);
  });
});

describe("Phi-3", () => {
  it("has its parts as windows of the tensors that are fused on disk, which together are all of them", async () => {
    const made = plan(await load("tiny-phi3"), { tensorParallelSize: 2 });
    const windows = (name: string) =>
      kernel(made, name).parts.map(({ firsts, rows, cols, rowStride }) => [firsts[0], rows, cols, rowStride]);
    expect(windows(`${L0}self_attn.qkv_proj.weight`)).toEqual([
      [0, 20, 20, 20],
      [400, 10, 20, 20],
      [600, 10, 20, 20],
    ]);
    expect(windows(`${L0}mlp.gate_up_proj.weight`)).toEqual([
      [0, 68, 20, 20],
      [68 * 20, 68, 20, 20],
    ]);
  });

  it("lacks a fused tensor once, though it has several parts of a kernel tensor", async () => {
    const lacking = `${L0}self_attn.qkv_proj.weight`;
    const checkpoint = changed(await load("tiny-phi3"), { rename: (name) => (name === lacking ? null : name) });
    expectLayercastError(() => plan(checkpoint), "tensor_missing", /lacks 1 of the tensors/);
  });
});
