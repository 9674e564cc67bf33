// A push plans as the checkpoint would that it sends: from the list of its tensors, or, where none is optional, from its config.

import { readdirSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { type Checkpoint, readCheckpointTable } from "../../orchestrator/checkpoint/checkpoint-table.js";
import { type ModelConfig, parseModelConfig } from "../../orchestrator/checkpoint/model-config.js";
import { elementCount, FORMAT_DTYPE_BITS } from "../../orchestrator/contract/dtype.js";
import type { CheckpointTable } from "../../orchestrator/contract/plan.js";
import type { DeclaredTensor } from "../../orchestrator/contract/push.js";
import { checkPlan } from "../../orchestrator/planner/check/check-plan.js";
import { declaredTable, skipRuleOf } from "../../orchestrator/planner/declared-table.js";
import { type PlanRequest, planReload } from "../../orchestrator/planner/plan-reload.js";
import { expectLayercastError } from "../checkpoint/expect-error.js";
import { LLAMA } from "./synthetic-checkpoint.js";

const CHECKPOINTS = path.resolve(import.meta.dirname, "../fixtures/checkpoints");
const FIXTURES = readdirSync(CHECKPOINTS).flatMap((name) =>
  readdirSync(path.join(CHECKPOINTS, name)).map((version) => `${name}/${version}`),
);
/** These have tensors that a config does not promise: scales, experts stacked in one, names with a prefix, a bias in another dtype. */
const BEYOND_CONFIG = [
  "tiny-deepseek-fp8/v1",
  "tiny-deepseek-v2/v1",
  "tiny-deepseek-v3/v1",
  "tiny-gemma3/v1",
  "tiny-qwen2-fp8/v1",
  "tiny-qwen3-moe-fp8/v1",
  "tiny-qwen3-moe-stacked/v1",
];

function load(name: string): Promise<Checkpoint> {
  return readCheckpointTable(path.join(CHECKPOINTS, name), { allowedRoots: [CHECKPOINTS] });
}

const hasCodes = ({ tensors }: CheckpointTable) => [...tensors.values()].some(({ dtype }) => dtype === "F8_E4M3");

function plan(table: CheckpointTable, config: ModelConfig, request: Partial<PlanRequest> = {}) {
  const made = planReload({
    ...{ table, config, tensorParallelSize: 2, expertParallel: false },
    ...{ scheme: "none", ignore: [], dtype: hasCodes(table) ? "bfloat16" : "auto" },
    ...request,
  });
  checkPlan(made, table);
  return made;
}

const listOf = ({ tensors }: CheckpointTable): DeclaredTensor[] =>
  [...tensors.values()].map(({ name, dtype, shape }) => ({ name, dtype, shape: [...shape] }));

const llama = (fields: Record<string, unknown> = {}) =>
  parseModelConfig(JSON.stringify({ ...LLAMA, torch_dtype: "bfloat16", ...fields }), "source.config");

describe("a list with the names of a wrapped model", () => {
  it("is that of the model, which is said", async () => {
    const { table, config } = await load("tiny-qwen3/v1");
    const wrapped = listOf(table).map((tensor) => ({ ...tensor, name: `base_model.model.${tensor.name}` }));
    const declared = declaredTable(config, wrapped);
    const made = plan(declared, config);
    expect([made.layoutDigest, made.mappingDigest]).toEqual([
      plan(table, config).layoutDigest,
      plan(declaredTable(config, listOf(table)), config).mappingDigest,
    ]);
    expect(made.warnings).toMatchObject([{ code: "names_unwrapped" }]);
  });

  it("that names a tensor twice is refused, wrapped or not", async () => {
    const { table, config } = await load("tiny-qwen3/v1");
    const [first] = listOf(table);
    if (first === undefined) throw new Error("no tensors");
    expectLayercastError(() => declaredTable(config, [first, first]), "invalid_request", /twice/);
    const inner = { ...first, name: first.name.replace(".weight", ".base_layer.weight") };
    expectLayercastError(() => declaredTable(config, [first, inner]), "tensor_unexpected", /are both/);
  });
});

describe.each(FIXTURES)("declared, %s", (name) => {
  it("has the layout of its files when its tensors are listed, in any order", async () => {
    const { table, config } = await load(name);
    const declared = declaredTable(config, listOf(table).reverse());
    const requests: Partial<PlanRequest>[] = [{}, { scheme: "fp8-tensor" }];
    if (hasCodes(table)) requests.push({ scheme: "as-stored", dtype: "auto", tensorParallelSize: 1 });
    for (const request of requests) {
      const { layoutDigest, skipped } = plan(declared, config, request);
      const fromFiles = plan(table, config, request);
      expect([request, layoutDigest, skipped]).toEqual([request, fromFiles.layoutDigest, fromFiles.skipped]);
    }
  });

  it("lets through, of what is in its files, all that no kernel tensor needs and nothing else", async () => {
    const { table, config } = await load(name);
    const { layout, skipped } = plan(table, config);
    const skipRule = skipRuleOf(config);
    for (const tensor of skipped) expect([tensor.name, skipRule(tensor.name)]).toEqual([tensor.name, tensor.reason]);
    for (const tensor of layout.checkpointTensors)
      expect([tensor.name, skipRule(tensor.name)]).toEqual([tensor.name, null]);
  });
});

describe.each(FIXTURES.filter((name) => !BEYOND_CONFIG.includes(name)))("the config alone of %s", (name) => {
  it("has the layout of its files, and their dtypes", async () => {
    const { table, config } = await load(name);
    const declared = declaredTable(config, null);
    expect(listOf(declared)).toEqual(listOf(table));
    expect(plan(declared, config).layoutDigest).toBe(plan(table, config).layoutDigest);
  });
});

describe("the config alone", () => {
  it("leaves out nothing but what is optional: the scales of attention", async () => {
    const { table, config } = await load("tiny-deepseek-v2/v1");
    const promised = listOf(declaredTable(config, null));
    expect(listOf(table)).toEqual(expect.arrayContaining(promised));
    const names = new Set(promised.map((tensor) => tensor.name));
    const optional = [...table.tensors.keys()].filter((tensor) => !names.has(tensor));
    expect(optional).toEqual(["model.layers.1.self_attn.kv_scale"]);
  });

  it("has the layout of its files, which have the correction bias in another dtype", async () => {
    const { table, config } = await load("tiny-deepseek-v3/v1");
    const declared = declaredTable(config, null);
    expect([...declared.tensors.keys()]).toEqual([...table.tensors.keys()]);
    expect(plan(declared, config).layoutDigest).toBe(plan(table, config).layoutDigest);
  });
});

describe.each(FIXTURES)("a list of the tensors of %s", (name) => {
  it("must have what a checkpoint must have, tensor by tensor", async () => {
    const { table, config } = await load(name);
    const { layout } = plan(table, config);
    const codes = new Set(listOf(table).flatMap(({ name: one, dtype }) => (dtype === "F8_E4M3" ? [one] : [])));
    const demanded = layout.checkpointTensors
      .map((tensor) => tensor.name)
      .filter((one) => !/kv_scale$/.test(one) && !/_scale(_inv)?$/.test(one));
    for (const lost of demanded) {
      const less = { ...table, tensors: new Map(table.tensors) };
      less.tensors.delete(lost);
      const refused = codes.has(lost) ? /lacks|no place for/ : /lacks/;
      expectLayercastError(() => plan(less, config), "tensor_missing", refused);
      const listed = listOf(less);
      expectLayercastError(() => plan(declaredTable(config, listed), config), "tensor_missing", refused);
    }
  });
});

describe("the declared table", () => {
  it("has its tensors sorted, one behind the other in one file, each at a place that fits its elements", async () => {
    const { table, config } = await load("tiny-qwen3-moe-fp8/v1");
    const odd: DeclaredTensor = { name: "lm_head.scale", dtype: "F8_E4M3", shape: [3] };
    const { files, tensors } = declaredTable(config, [...listOf(table), odd].reverse());
    expect([...tensors.keys()]).toEqual([...tensors.keys()].sort());
    let end = 0;
    for (const { file, offset, dtype, shape } of tensors.values()) {
      expect([file, offset % (FORMAT_DTYPE_BITS[dtype] / 8), offset >= end]).toEqual([0, 0, true]);
      end = offset + (elementCount(shape) * FORMAT_DTYPE_BITS[dtype]) / 8;
    }
    expect(files.map(({ path: at, sizeBytes }) => [at, sizeBytes])).toEqual([["push", end]]);
  });

  it("takes the dtype that the config names, else BF16, but F32 for what is kept in it", async () => {
    const dtypes = (config: ModelConfig) =>
      new Set(listOf(declaredTable(config, null)).map(({ name, dtype }) => `${name.split(".").at(-1)} ${dtype}`));
    expect(dtypes(llama({ torch_dtype: "float16" }))).toEqual(new Set(["weight F16"]));
    expect(dtypes(llama({ torch_dtype: undefined }))).toEqual(new Set(["weight BF16"]));
    expect(dtypes(llama({ dtype: "float32" }))).toEqual(new Set(["weight F32"]));
    const { config } = await load("tiny-deepseek-v3/v1");
    expect(dtypes(config)).toEqual(new Set(["weight BF16", "e_score_correction_bias F32"]));
  });

  it("names what is missing from the list, or has no place, as the list's", () => {
    const listed = listOf(declaredTable(llama(), null));
    const withoutHead = declaredTable(
      llama(),
      listed.filter(({ name }) => name !== "lm_head.weight"),
    );
    expectLayercastError(
      () => plan(withoutHead, llama()),
      "tensor_missing",
      /^source\.tensors lacks 1 of the tensors that a llama model with its config has: lm_head\.weight\./,
    );
    const withMore = declaredTable(llama(), [...listed, { name: "extra", dtype: "BF16", shape: [1] }]);
    expectLayercastError(
      () => plan(withMore, llama()),
      "tensor_unexpected",
      /^source\.tensors has 1 tensor .*: extra\./,
    );
  });

  it("has every name once", () => {
    const tensor: DeclaredTensor = { name: "lm_head.weight", dtype: "BF16", shape: [1] };
    const error = expectLayercastError(
      () => declaredTable(llama(), [tensor, { ...tensor, shape: [2] }]),
      "invalid_request",
      /source\.tensors names "lm_head\.weight" twice/,
    );
    expect(error.details).toEqual({ tensor: "lm_head.weight" });
  });

  it("is not made of a config that promises too much, or of tensors that no machine holds", () => {
    expectLayercastError(
      () => declaredTable(llama({ num_hidden_layers: 2 ** 31 - 1 }), null),
      "checkpoint_invalid",
      /^source\.config demands more than 200000 tensors/,
    );
    for (const shape of [
      [2 ** 31, 2 ** 31],
      [1e300, 1e300],
      [1e300, 1e300, 0],
    ]) {
      const huge: DeclaredTensor = { name: "huge", dtype: "BF16", shape };
      expectLayercastError(
        () => declaredTable(llama(), [huge]),
        "invalid_request",
        /^The tensors of source\.tensors are /,
      );
    }
  });

  it("of quantized weights is not made of the config alone, which does not say what will be sent", () => {
    const quantized = llama({ quantization_config: { quant_method: "fp8" } });
    expectLayercastError(
      () => declaredTable(quantized, null),
      "invalid_request",
      /^source\.config has a quantization_config, .* List the tensors in source\.tensors\.$/,
    );
    const listed: DeclaredTensor = { name: "lm_head.weight", dtype: "BF16", shape: [2, 2] };
    expect([...declaredTable(quantized, [listed]).tensors.keys()]).toEqual(["lm_head.weight"]);
    expect(declaredTable(llama({ quantization_config: null }), null).tensors.size).toBeGreaterThan(0);
  });

  it("says what is wrong with a config by the name that the request gave it", () => {
    expectLayercastError(
      () => declaredTable(llama({ vocab_size: "many" }), null),
      "checkpoint_invalid",
      /^source\.config must give vocab_size as a whole number/,
    );
  });
});
