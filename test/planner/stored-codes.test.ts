import { describe, expect, it } from "vitest";
import { AGREEMENT_FIELDS, OP_FIELDS, SLICE_FIELDS } from "../../native/native.js";
import type { ErrorCode } from "../../orchestrator/contract/errors.js";
import type { CheckpointTensor, KernelTensor, Plan } from "../../orchestrator/contract/plan.js";
import { checkPlan } from "../../orchestrator/planner/check/check-plan.js";
import { type PlanRequest, planReload } from "../../orchestrator/planner/plan-reload.js";
import { layoutArena } from "../../orchestrator/program/arena-layout.js";
import { expectLayercastError } from "../checkpoint/expect-error.js";
import { rowsOf } from "../program/interpret-program.js";
import { createResolver } from "./resolver.js";
import { type Synthetic, synthesize } from "./synthetic-checkpoint.js";
import {
  deepseekCase,
  type ExpertForm,
  type MoeCase,
  moeShapes,
  quantizedOnDisk,
  type ScaleKind,
} from "./synthetic-moe.js";

interface Change {
  /** Beside the config of deepseekCase. */
  fields?: Record<string, unknown>;
  /** Of the config alone: the tensors are those of a config without them. */
  claims?: Record<string, unknown>;
  form?: ExpertForm;
  kind?: ScaleKind;
  /** Tensors changed or added, by name; null takes one away. */
  tensors?: Record<string, Partial<CheckpointTensor> | null>;
  request?: Partial<PlanRequest>;
}

function requestOf({
  fields = {},
  claims = {},
  form = "each",
  kind = "block",
  tensors = {},
  request = {},
}: Change): PlanRequest {
  const model = deepseekCase(form);
  const changed = { ...model, fields: { ...model.fields, ...fields } } as MoeCase;
  const { table, config } = withTensors(quantizedOnDisk(changed, kind), tensors);
  return {
    table,
    config: { ...config, fields: { ...config.fields, ...claims } },
    tensorParallelSize: 2,
    expertParallel: false,
    scheme: "as-stored",
    ignore: [],
    dtype: "auto",
    ...request,
  };
}

function withTensors({ table, ...rest }: Synthetic, changes: NonNullable<Change["tensors"]>): Synthetic {
  const tensors = new Map(table.tensors);
  for (const [name, change] of Object.entries(changes)) {
    const known = tensors.get(name) ?? { name, dtype: "F32", shape: [], file: 0, offset: 104 };
    if (change === null) tensors.delete(name);
    else tensors.set(name, { ...known, ...change });
  }
  const sorted = [...tensors].sort(([one], [other]) => (one < other ? -1 : 1));
  return { ...rest, table: { ...table, tensors: new Map(sorted) } };
}

function planned(change: Change): Plan {
  const request = requestOf(change);
  const plan = planReload(request);
  checkPlan(plan, request.table);
  return plan;
}

function kernels({ layout }: Plan): Map<string, KernelTensor> {
  return new Map(layout.layers.flatMap(({ kernelTensors }) => kernelTensors.map((kernel) => [kernel.name, kernel])));
}

const L1 = "model.layers.1.";
const EXPERTS = `${L1}mlp.experts.`;
const ATTENTION = `${L1}self_attn.`;
const DOWN = `${L1}mlp.shared_experts.down_proj.weight`;

/** One scale for each of these tensors' inputs. */
function inputScales(modules: string[]): NonNullable<Change["tensors"]> {
  return Object.fromEntries(modules.map((module) => [`${module}.input_scale`, { shape: [], dtype: "BF16" as const }]));
}

describe("codes that stay as they are stored", () => {
  it.each<[ScaleKind, string, Record<string, number[]>]>([
    ["block", "_scale_inv", { w13_weight: [4, 2], w2_weight: [2, 2], fused_qkv_a_proj: [3, 2], o_proj: [2, 1] }],
    ["channel", "_scale", { w13_weight: [512, 1], w2_weight: [256, 1], fused_qkv_a_proj: [320, 1], o_proj: [256, 1] }],
    ["tensor", "_scale", { w13_weight: [], w2_weight: [], fused_qkv_a_proj: [1], o_proj: [1] }],
  ])("have their %s scales as F32 kernel tensors of their own, cut with them", (kind, suffix, shapes) => {
    const made = kernels(planned({ kind }));
    for (const [module, shape] of Object.entries(shapes)) {
      const name = module.startsWith("w") ? EXPERTS + module : `${ATTENTION}${module}.weight`;
      const codes = made.get(name);
      expect(codes).toMatchObject({ dtype: "F8_E4M3", scheme: "none", scale: null, roundTo: null });
      const experts = module.startsWith("w") ? { count: 3, byRank: false } : null;
      expect(made.get(name + suffix)).toMatchObject({ dtype: "F32", scheme: "none", shape, experts, roundTo: null });
    }
  });

  it("leave everything else what it is, also linears that were never quantized", () => {
    // Where the file has room for it.
    const tensors = { [DOWN]: { dtype: "BF16", offset: 104 }, [`${DOWN}_scale_inv`]: null } as const;
    const made = kernels(planned({ tensors }));
    expect(made.get(DOWN)).toMatchObject({ dtype: "BF16", scheme: "none", roundTo: "BF16" });
    expect(made.has(`${DOWN}_scale_inv`)).toBe(false);
    expect(made.get("model.norm.weight")?.dtype).toBe("BF16");
  });

  it("keep the scales of inputs, one a linear and one an expert", () => {
    const ofExperts = [0, 1, 2].flatMap((expert) => ["gate", "up"].map((part) => `${EXPERTS}${expert}.${part}_proj`));
    const made = kernels(planned({ kind: "tensor", tensors: inputScales([`${ATTENTION}o_proj`, ...ofExperts]) }));
    const shared = { dtype: "F32", mustAgree: true, roundTo: null };
    expect(made.get(`${ATTENTION}o_proj.input_scale`)).toMatchObject({ ...shared, shape: [1], experts: null });
    const experts = { count: 3, byRank: false };
    expect(made.get(`${EXPERTS}w13_input_scale`)).toMatchObject({ ...shared, shape: [], experts });
  });

  it("of a checkpoint without codes are its values", () => {
    const { fields } = deepseekCase("each");
    const { table, config } = synthesize(fields, moeShapes(deepseekCase("each")), { fill: false });
    const asked = { table, config, tensorParallelSize: 2, expertParallel: false, ignore: [], dtype: "auto" } as const;
    const [stored, none] = (["as-stored", "none"] as const).map(
      (scheme) => planReload({ ...asked, scheme }).layout.layers,
    );
    expect(stored).toEqual(none);
  });

  it.each<[Record<string, unknown>, PlanRequest["dtype"], string]>([
    [{}, "auto", "BF16"],
    [{ torch_dtype: "float16" }, "auto", "F16"],
    [{ dtype: "float32", torch_dtype: "float16" }, "auto", "F32"],
    [{ torch_dtype: "int8" }, "auto", "BF16"],
    [{ torch_dtype: "float32" }, "float16", "F16"],
  ])("give latent values a dtype: config %j and a request of %s make it %s", (fields, dtype, expected) => {
    const made = kernels(planned({ fields, request: { dtype } }));
    const derived = {
      from: `${ATTENTION}kv_b_proj.weight`,
      scheme: "fp8-block",
      scale: `${ATTENTION}kv_b_proj.weight_scale_inv`,
    };
    for (const name of ["W_UK_T", "W_UV"])
      expect(made.get(`${ATTENTION}mla_attn.${name}`)).toMatchObject({ dtype: expected, derived });
  });

  it("compare the scales of parts that are fused, each with the first, and load the first", () => {
    const plan = planned({ kind: "tensor" });
    const layer = plan.layout.layers.findIndex(({ name }) => `${name}.` === L1);
    const resolve = createResolver(plan.layout, layoutArena(plan.layout, 1));
    const { program } = resolve(plan.source, { layers: [0, layer], rank: 1, phase: "layer", allowNonFinite: false });
    // fused_qkv_a_proj, gate_up_proj of the shared expert, and w13 of three experts.
    const pairs = rowsOf(AGREEMENT_FIELDS, program.agreements);
    expect(pairs).toHaveLength(2 + 3);
    const slices = rowsOf(SLICE_FIELDS, program.slices);
    const firsts = rowsOf(OP_FIELDS, program.ops).map(({ firstSlice, sliceCount }) => [firstSlice, sliceCount]);
    for (const pair of pairs) {
      expect(firsts).toContainEqual([pair.slice, 1]);
      expect(pair.with).toBe(pair.slice + 1);
      expect(slices[pair.with]).toMatchObject({ rows: 1, cols: 1, toRow: 0 });
    }
  });
});

describe("codes that are made values", () => {
  it("leave the scales of inputs behind, by name", () => {
    const tensors = inputScales([`${ATTENTION}o_proj`]);
    const { skipped } = planned({ tensors, request: { scheme: "none", dtype: "bfloat16" } });
    expect(skipped.map(({ name }) => name)).toEqual([`${ATTENTION}o_proj.input_scale`]);
    expect(skipped[0]?.reason).toMatch(/of use only as stored/);
  });

  it("or were values before leave the scales of inputs behind too, whatever the recipe", () => {
    const tensors = { [DOWN]: { dtype: "BF16", offset: 104 }, [`${DOWN}_scale_inv`]: null } as const;
    const left = `${L1}mlp.shared_experts.down_proj.input_scale`;
    for (const scheme of ["none", "as-stored"] as const) {
      const { skipped } = planned({
        tensors: { ...tensors, [left]: {} },
        request: { scheme, dtype: scheme === "none" ? "bfloat16" : "auto" },
      });
      expect(skipped).toEqual([{ name: left, reason: expect.stringMatching(/left over/) }]);
    }
  });

  it("may be cut anywhere, and quantized again", () => {
    const fields = { intermediate_size: 264, moe_intermediate_size: 24 };
    const made = kernels(
      planned({ fields, request: { scheme: "fp8-block", dtype: "float16", tensorParallelSize: 4 } }),
    );
    expect(made.get(`${EXPERTS}w13_weight`)).toMatchObject({ dtype: "F8_E4M3", scheme: "fp8-block", roundTo: "F16" });
    expect(made.get(`${EXPERTS}w13_weight`)?.parts[0]?.scales).toMatchObject({ blockRows: 128, blockCols: 128 });
  });
});

const fp8 = { quant_method: "fp8" };
const compressed = (weights: object) => ({
  quantization_config: { quant_method: "compressed-tensors", config_groups: { group_0: { weights } } },
});

const config = (fields: object) => ({ quantization_config: fields });
const quark = (weight: unknown, more: object = {}) =>
  config({ quant_method: "quark", global_quant_config: { weight, input_tensors: null }, ...more });

const REFUSED: [law: string, change: Change, code: ErrorCode, sentence: RegExp][] = [
  [
    "ranks that cut a block, where fewer would not",
    { request: { tensorParallelSize: 4 } },
    "indivisible",
    /over 4 ranks as it is stored: rank 0's part ends at column 64, .* What works is tensor-parallel size 2, or requantizing with dtype: bfloat16/,
  ],
  [
    "ranks that cut a block by columns",
    {
      fields: {
        intermediate_size: 512,
        n_shared_experts: 0,
        v_head_dim: 32,
        qk_nope_head_dim: 96,
        qk_rope_head_dim: 32,
        num_attention_heads: 4,
      },
    },
    "indivisible",
    /o_proj\.weight .* rank 0's part ends at column 64, .* tensor-parallel size 1/,
  ],
  [
    "ranks that cut the blocks of experts, which may be whole",
    { fields: { moe_intermediate_size: 128, n_shared_experts: 2 } },
    "indivisible",
    /experts\.0\.gate_proj\.weight .* What works is tensor-parallel size 1, or expert parallelism, or requantizing/,
  ],
  [
    "parts that would share a block, whatever the ranks",
    { fields: { q_lora_rank: 64 }, request: { tensorParallelSize: 1 } },
    "indivisible",
    /q_a_proj\.weight cannot .* ends at row 64, .* What works is requantizing/,
  ],
  [
    "fused parts of which one has its scales by rows",
    {
      tensors: {
        [`${ATTENTION}q_a_proj.weight_scale_inv`]: null,
        [`${ATTENTION}q_a_proj.weight_scale`]: { shape: [128, 1] },
      },
    },
    "unsupported_recipe",
    /parts of .*fused_qkv_a_proj\.weight have scales of different kinds, .*q_a_proj\.weight_scale and .*_inv/,
  ],
  [
    "a scale of the input of one of two parts",
    { tensors: inputScales([`${ATTENTION}q_a_proj`]) },
    "unsupported_recipe",
    /q_a_proj\.input_scale, and others have none/,
  ],
  [
    "codes without scales",
    { tensors: { [`${DOWN}_scale_inv`]: null } },
    "tensor_missing",
    /down_proj\.weight is F8_E4M3, but the checkpoint has no .*weight_scale_inv and no .*weight_scale:/,
  ],
  [
    "an expert without scales",
    { tensors: { [`${EXPERTS}2.up_proj.weight_scale_inv`]: null } },
    "tensor_missing",
    /experts\.2\.up_proj\.weight_scale_inv:/,
  ],
  [
    "scales of too few blocks",
    { tensors: { [`${DOWN}_scale_inv`]: { shape: [2, 3] } } },
    "shape_mismatch",
    /can have .*\[2, 4\] or/,
  ],
  [
    "an expert with another kind of scales",
    { tensors: { [`${EXPERTS}1.up_proj.weight_scale_inv`]: { shape: [512, 1] } } },
    "shape_mismatch",
    /experts\.1\.up_proj.* can have \[4, 2\]\./,
  ],
  [
    "scales of another dtype",
    { tensors: { [`${DOWN}_scale_inv`]: { dtype: "U8" } } },
    "unsupported_dtype",
    /U8; scales must be BF16, F16, F32, F8_E8M0\. Submit/,
  ],
  [
    "an input with a scale a row",
    { tensors: { [`${ATTENTION}o_proj.input_scale`]: { shape: [256, 1] } } },
    "shape_mismatch",
    /input_scale has shape \[256, 1\]; .* can have \[\] or \[1\]/,
  ],
  ["codes that are transposed on disk", { form: "transposed" }, "unsupported_recipe", /holds FP8 codes transposed/],
  [
    "codes without a dtype to make values of",
    { request: { scheme: "fp8-tensor" } },
    "unsupported_dtype",
    /is F8_E4M3\. Submit it with dtype: bfloat16/,
  ],
  [
    "an unknown way of quantizing",
    { fields: { quantization_config: { quant_method: "gptq" } } },
    "unsupported_recipe",
    /gptq.*; fp8, compressed-tensors, modelopt, fbgemm_fp8 and quark are known\./,
  ],
  [
    "blocks of another size",
    { fields: { quantization_config: { ...fp8, weight_block_size: [64, 128] } } },
    "unsupported_recipe",
    /weight_block_size \[64, 128\]; blocks of/,
  ],
  [
    "a quantization config that is none",
    { fields: { quantization_config: 7 } },
    "unsupported_recipe",
    /quant_method missing/,
  ],
  ["codes of four bits", { fields: compressed({ num_bits: 4, type: "int" }) }, "unsupported_recipe", /num_bits .*4/],
  [
    "ModelOpt's codes of four bits",
    { fields: config({ quant_method: "modelopt", quant_algo: "NVFP4" }) },
    "unsupported_recipe",
    /quant_algo .*NVFP4.*; FP8 and FP8_PER_CHANNEL_PER_TOKEN are known/,
  ],
  [
    "ModelOpt's codes of a kind that the config does not name",
    { kind: "tensor", fields: config({ quant_method: "modelopt" }) },
    "unsupported_recipe",
    /quant_algo missing; FP8 and/,
  ],
  [
    "ModelOpt's mixtures, where its own file was copied",
    { fields: config({ producer: { name: "modelopt" }, quantization: { quant_algo: "MIXED_PRECISION" } }) },
    "unsupported_recipe",
    /quant_algo .*MIXED_PRECISION/,
  ],
  [
    "Quark's microscaled codes",
    { fields: quark({ dtype: "fp4", qscheme: "per_group", group_size: 32 }) },
    "unsupported_recipe",
    /weights of dtype .*fp4.*; fp8_e4m3 is known/,
  ],
  [
    "Quark's codes of four bits in some layers",
    { fields: quark({ dtype: "fp8_e4m3" }, { layer_quant_config: { "*mlp*": { weight: { dtype: "int4" } } } }) },
    "unsupported_recipe",
    /weights of dtype .*int4/,
  ],
  [
    "Quark's codes of several steps",
    { fields: quark([{ dtype: "fp8_e4m3" }, { dtype: "int4" }]) },
    "unsupported_recipe",
    /weights of dtype .*int4/,
  ],
  [
    "FP8 of the other format by config",
    { fields: config({ ...fp8, fmt: "e5m2" }) },
    "unsupported_recipe",
    /fmt .*e5m2.*; e4m3 is known\. Submit the checkpoint as it was before quantizing/,
  ],
  [
    "FP8 of the other format on disk",
    { tensors: { [DOWN]: { dtype: "F8_E5M2" } } },
    "unsupported_dtype",
    /down_proj\.weight is F8_E5M2; .* or quantized to F8_E4M3\./,
  ],
  [
    "fused parts whose scales have different dtypes",
    { tensors: { [`${ATTENTION}q_a_proj.weight_scale_inv`]: { dtype: "F8_E8M0" } } },
    "unsupported_dtype",
    /scales of .*fused_qkv_a_proj\.weight have different dtypes: .*q_a_proj\.weight_scale_inv F8_E8M0, .*F32/,
  ],
  [
    "blocks of another size among compressed tensors, also when values are made",
    {
      fields: compressed({ num_bits: 8, type: "float", block_structure: [128, 64] }),
      request: { scheme: "none", dtype: "bfloat16" },
    },
    "unsupported_recipe",
    /block_structure \[128, 64\]; blocks of/,
  ],
];

describe("planReload refuses", () => {
  it.each(REFUSED)("%s", (_, change, code, sentence) => {
    const request = requestOf(change);
    expectLayercastError(() => planReload(request), code, sentence);
  });

  it("more experts than there can be, in no time", () => {
    for (const form of ["each", "stacked"] as const) {
      const request = requestOf({ form });
      const fields = { ...request.config.fields, n_routed_experts: 65_536 };
      const router = request.table.tensors.get(`${L1}mlp.gate.weight`);
      // As if it had a row, or a number, for each.
      if (router !== undefined) router.shape = [65_536, 256];
      const bias = request.table.tensors.get(`${L1}mlp.gate.e_score_correction_bias`);
      if (bias !== undefined) bias.shape = [65_536];
      const config = { ...request.config, fields };
      const [code, sentence] =
        form === "each"
          ? (["tensor_missing", /more than 1000 .*experts\.3\.gate_proj/] as const)
          : (["shape_mismatch", /experts\.gate_up_proj has shape/] as const);
      expectLayercastError(() => planReload({ ...request, config }), code, sentence);
    }
  });

  it.each<[string, Change]>([
    ["quant_method fp8", { fields: { quantization_config: { ...fp8, weight_block_size: [128, 128] } } }],
    [
      "scales a tensor under fp8",
      { kind: "tensor", fields: { quantization_config: { ...fp8, weight_block_size: null } } },
    ],
    [
      "compressed tensors",
      { kind: "channel", fields: compressed({ num_bits: 8, type: "float", strategy: "channel" }) },
    ],
    ["capitals", { fields: config({ quant_method: "FP8", fmt: "float8_e4m3fn", scale_fmt: "ue8m0" }) }],
    ["an underscore", { fields: config({ quant_method: "compressed_tensors" }) }],
    ["a config that says nothing", { fields: config({}) }],
    ["ModelOpt's FP8", { kind: "tensor", fields: config({ quant_method: "modelopt", quant_algo: "FP8" }) }],
    ["ModelOpt's own file", { kind: "tensor", fields: config({ quantization: { quant_algo: "FP8" } }) }],
    ["FBGEMM's FP8", { kind: "channel", fields: config({ quant_method: "fbgemm_fp8", activation_scale_ub: 1200 }) }],
    [
      "Quark's FP8",
      {
        kind: "tensor",
        fields: quark({ dtype: "fp8_e4m3", qscheme: "per_tensor" }, { layer_quant_config: { "*k_proj": {} } }),
      },
    ],
  ])("nothing that it knows: %s", (_, change) => {
    expect(() => planned(change)).not.toThrow();
  });
});
