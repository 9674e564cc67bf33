import { describe, expect, it } from "vitest";
import type { ErrorCode } from "../../orchestrator/contract/errors.js";
import { planReload } from "../../orchestrator/planner/plan-reload.js";
import { expectLayercastError } from "../checkpoint/expect-error.js";
import { type Change, L0, requestOf } from "./changed-llama.js";
import { LLAMA, shapesOf, synthesize } from "./synthetic-checkpoint.js";

const REFUSED: [law: string, change: Change, code: ErrorCode, sentence: RegExp][] = [
  [
    "an unknown architecture",
    { fields: { architectures: ["GPT2LMHeadModel"] } },
    "unsupported_architecture",
    /"GPT2LMHeadModel" is not known; known are LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM/,
  ],
  [
    "a config that names nothing",
    { fields: { architectures: [], model_type: null } },
    "unsupported_architecture",
    /known are/,
  ],
  [
    "a model type that every object has",
    { fields: { architectures: [], model_type: "constructor" } },
    "unsupported_architecture",
    /"constructor"/,
  ],
  [
    "heads that do not divide the hidden size, without head_dim",
    { fields: { head_dim: undefined, num_attention_heads: 7 } },
    "checkpoint_invalid",
    /head_dim/,
  ],
  ["no vocab_size", { fields: { vocab_size: undefined } }, "checkpoint_invalid", /vocab_size/],
  [
    "a missing weight",
    { tensors: { [`${L0}self_attn.k_proj.weight`]: null } },
    "tensor_missing",
    /lacks 1 .*model\.layers\.0\.self_attn\.k_proj\.weight/,
  ],
  ["an untied model without a head", { tensors: { "lm_head.weight": null } }, "tensor_missing", /lm_head\.weight/],
  ["a missing embedding", { tensors: { "model.embed_tokens.weight": null } }, "tensor_missing", /embed_tokens/],
  ["a bias that the config demands", { fields: { attention_bias: true } }, "tensor_missing", /q_proj\.bias.* and /],
  [
    "a part of a fused bias",
    { biases: ["q", "v", "o"].map((name) => `self_attn.${name}_proj`), fields: { attention_bias: true } },
    "tensor_missing",
    /lacks 2 .*k_proj\.bias/,
  ],
  [
    "a bias that nothing demands",
    { biases: ["mlp.down_proj"] },
    "tensor_unexpected",
    /layers\.0\.mlp\.down_proj\.bias/,
  ],
  ["more layers than there can be", { fields: { num_hidden_layers: 2 ** 31 - 1 } }, "tensor_missing", /more than 1000/],
  [
    "an unknown tensor",
    { tensors: { "model.layers.1.mlp.extra.weight": [2] } },
    "tensor_unexpected",
    /1 tensor that a llama .*model\.layers\.1\.mlp\.extra\.weight/,
  ],
  ["a bias of the head", { tensors: { "lm_head.bias": [100] } }, "tensor_unexpected", /lm_head\.bias/],
  ["head norms in a Llama", { tensors: { [`${L0}self_attn.q_norm.weight`]: [3] } }, "tensor_unexpected", /q_norm/],
  [
    "a scale that two tensors give",
    { tensors: { [`${L0}self_attn.k_scale`]: [], [`${L0}self_attn.attn.k_scale`]: [] } },
    "tensor_unexpected",
    /others already give: model\.layers\.0\.self_attn\.attn\.k_scale/,
  ],
  [
    "a layer past the last with a name that is none",
    { tensors: { "model.layers.x.weight": [1] } },
    "tensor_unexpected",
    /layers\.x/,
  ],
  [
    "a shape other than the config's",
    { tensors: { [`${L0}mlp.up_proj.weight`]: [47, 24] } },
    "shape_mismatch",
    /up_proj\.weight has shape \[47, 24\]; the config makes it \[48, 24\]/,
  ],
  ["a transposed weight", { tensors: { [`${L0}mlp.down_proj.weight`]: [48, 24] } }, "shape_mismatch", /\[24, 48\]/],
  [
    "a vocabulary padded on disk",
    { tensors: { "lm_head.weight": [128, 24] } },
    "shape_mismatch",
    /makes it \[100, 24\]/,
  ],
  ["a scale with two elements", { tensors: { [`${L0}self_attn.k_scale`]: [2] } }, "shape_mismatch", /\[\] or \[1\]/],
  [
    "a norm with a second dimension",
    { tensors: { "model.norm.weight": [24, 1] } },
    "shape_mismatch",
    /makes it \[24\]/,
  ],
  ["heads over ranks", { request: { tensorParallelSize: 3 } }, "indivisible", /3 ranks: vocab_size 100 padded is 128/],
  [
    "query heads over ranks",
    {
      fields: { vocab_size: 192 },
      request: { tensorParallelSize: 3 },
      tensors: { "model.embed_tokens.weight": [192, 24], "lm_head.weight": [192, 24] },
    },
    "indivisible",
    /num_attention_heads is 8, which does not divide by 3/,
  ],
  ["more ranks than heads", { request: { tensorParallelSize: 16 } }, "indivisible", /num_attention_heads is 8.* by 16/],
  [
    "an intermediate size over ranks",
    {
      request: { tensorParallelSize: 4 },
      fields: { intermediate_size: 50 },
      tensors: Object.fromEntries(
        [0, 1].flatMap((layer) => [
          [`model.layers.${layer}.mlp.gate_proj.weight`, [50, 24]],
          [`model.layers.${layer}.mlp.up_proj.weight`, [50, 24]],
          [`model.layers.${layer}.mlp.down_proj.weight`, [24, 50]],
        ]),
      ),
    },
    "indivisible",
    /intermediate_size is 50, which does not divide by 4/,
  ],
  ["no ranks", { request: { tensorParallelSize: 0 } }, "invalid_request", /is 0; it must be 1 or more/],
  ["half a rank", { request: { tensorParallelSize: 1.5 } }, "invalid_request", /is 1\.5/],
  [
    "codes of which nobody says what they are to be",
    { dtypes: { [`${L0}mlp.down_proj.weight`]: "F8_E4M3" }, tensors: { [`${L0}mlp.down_proj.weight_scale`]: [] } },
    "unsupported_dtype",
    /down_proj\.weight of .* is F8_E4M3\. Submit it with dtype: bfloat16 .* or with recipe: as-stored/,
  ],
  [
    "codes in a norm",
    { dtypes: { "model.norm.weight": "F8_E4M3" } },
    "unsupported_dtype",
    /model\.norm\.weight is F8_E4M3; .* BF16, F16, F32, or F8_E4M3 in linear weights/,
  ],
  ["a norm of integers", { dtypes: { "model.norm.weight": "I64" } }, "unsupported_dtype", /model\.norm\.weight is I64/],
  [
    "parts of different dtypes",
    { dtypes: { [`${L0}self_attn.k_proj.weight`]: "F16" } },
    "unsupported_dtype",
    /parts of model\.layers\.0\.self_attn\.qkv_proj\.weight have different dtypes: .*q_proj\.weight BF16, .*k_proj\.weight F16, .* with dtype: bfloat16 to have all of them rounded/,
  ],
  [
    "codes beside values, even when all are rounded",
    {
      dtypes: { [`${L0}mlp.up_proj.weight`]: "F8_E4M3" },
      tensors: { [`${L0}mlp.up_proj.weight_scale`]: [] },
      request: { dtype: "bfloat16" },
    },
    "unsupported_dtype",
    /gate_up_proj\.weight have different dtypes: .*gate_proj\.weight BF16, .*up_proj\.weight F8_E4M3\. .* in one dtype\.$/,
  ],
  [
    "an ignore pattern that names one part",
    { request: { ignore: ["*.q_proj.weight"], scheme: "fp8-channel" } },
    "invalid_request",
    /name .*q_proj\.weight but not .*k_proj\.weight, .*v_proj\.weight/,
  ],
  [
    "an ignore pattern that names nothing",
    { request: { ignore: ["lm_head"], scheme: "fp8-channel" } },
    "invalid_request",
    /"lm_head" names no tensor/,
  ],
];

describe("planReload refuses", () => {
  it.each(REFUSED)("%s", (_, change, code, sentence) => {
    const request = requestOf(change);
    expectLayercastError(() => planReload(request), code, sentence);
  });

  it("key/value heads that neither divide the ranks nor are divided by them, saying both numbers", () => {
    const fields = { num_attention_heads: 12, num_key_value_heads: 6, head_dim: 3, vocab_size: 128 };
    const { table, config } = synthesize({ ...LLAMA, ...fields }, shapesOf({ ...LLAMA, ...fields }), { fill: false });
    const request = {
      table,
      config,
      tensorParallelSize: 4,
      expertParallel: false,
      scheme: "none",
      ignore: [],
      dtype: "auto",
    } as const;
    const sentence = /k_proj\.weight .* over 4 ranks: num_key_value_heads is 6, .*nor 4 by it/;
    expectLayercastError(() => planReload(request), "indivisible", sentence);
  });

  it("with lists in the details that a program can use", () => {
    const tensors = { "model.norm.weight": null, "lm_head.weight": null };
    const error = expectLayercastError(() => planReload(requestOf({ tensors })), "tensor_missing", /lacks 2/);
    expect(error.details).toEqual({ tensors: ["model.norm.weight", "lm_head.weight"], count: 2 });
  });
});
