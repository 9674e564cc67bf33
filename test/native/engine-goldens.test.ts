// vLLM 0.26's own loader, on an H200, made test/fixtures/engine of our checkpoints: every parameter after post-processing, as
// [dtype, shape, stride, sha256 of its bytes in memory order]. Each rank must hold these bytes, but for what is named here; and of
// what is named here the engine's bytes are made from ours, so that the difference is that one and no other.

import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { readCheckpointTable } from "../../orchestrator/checkpoint/checkpoint-table.js";
import { parseModelConfig } from "../../orchestrator/checkpoint/model-config.js";
import type { Plan } from "../../orchestrator/contract/plan.js";
import type { DeclaredTensor } from "../../orchestrator/contract/push.js";
import type { Scheme } from "../../orchestrator/contract/recipe.js";
import { checkPlan } from "../../orchestrator/planner/check/check-plan.js";
import { declaredTable } from "../../orchestrator/planner/declared-table.js";
import { type PlanRequest, planReload } from "../../orchestrator/planner/plan-reload.js";
import { layoutArena } from "../../orchestrator/program/arena-layout.js";
import { type HeldTensor, loadRank } from "./load-rank.js";

const FIXTURES = path.resolve(import.meta.dirname, "../fixtures");
const ENGINE = path.join(FIXTURES, "engine");

const SCHEMES: Record<string, Scheme> = {
  none: "none",
  fp8_per_tensor: "fp8-tensor",
  fp8_per_channel: "fp8-channel",
  fp8_per_block: "fp8-block",
};

type Parameter = [dtype: string, shape: number[], stride: number[], sha256: string];

interface Golden {
  tp: number;
  rank: number;
  /** A second name of a parameter has `alias`. */
  quantization: Record<string, { tensors: Record<string, Parameter | { alias: string }> }>;
}

interface Case {
  checkpoint: string;
  ranks: number;
  rank: number;
  quantization: string;
  parameters: Map<string, Parameter>;
  unquantized: Map<string, Parameter>;
}

const CASES = readdirSync(ENGINE)
  .filter((file) => /\.tp\d+\./.test(file))
  .flatMap((file): Case[] => {
    const { tp: ranks, rank, quantization } = JSON.parse(readFileSync(path.join(ENGINE, file), "utf8")) as Golden;
    const checkpoint = file.replace(/-(v\d+)\..+$/, "/$1");
    const unquantized = parametersOf(quantization.none?.tensors ?? {});
    return Object.entries(quantization).map(([name, { tensors }]) => {
      return { checkpoint, ranks, rank, quantization: name, parameters: parametersOf(tensors), unquantized };
    });
  });

/** By the names of our kernel tensors. */
function parametersOf(tensors: Golden["quantization"][string]["tensors"]): Map<string, Parameter> {
  const parameters = new Map<string, Parameter>();
  for (const [name, parameter] of Object.entries(tensors)) {
    const ours = name.replace(".routed_experts.", ".").replace(".mla_attn.mla_attn.", ".mla_attn.");
    if (Array.isArray(parameter)) parameters.set(ours, parameter);
  }
  return parameters;
}

/** Its dimensions as they lie in memory: some parameters are transposed views. */
function shapeInMemory([, shape, stride]: Parameter): number[] {
  const axes = shape.map((_, axis) => axis).sort((a, b) => (stride[b] ?? 0) - (stride[a] ?? 0) || a - b);
  return axes.map((axis) => shape[axis] ?? 0);
}

/**
 * What a rank is to hold. The engine's own quantization also takes routers; they are left alone here, so they are what the engine
 * has without it.
 */
function expectedOf({ parameters, unquantized }: Case): Map<string, Parameter> {
  const expected = new Map<string, Parameter>();
  for (const [name, parameter] of parameters) {
    const router = unquantized.get(name);
    if (!/\.mlp\.gate\.weight/.test(name)) expected.set(name, parameter);
    else if (router !== undefined) expected.set(name, router);
  }
  return expected;
}

/** 1, or what the checkpoint gives; no parameters of the engine's. */
const isAttentionScale = (name: string) => /attn\.(q|k|v|prob)_scale$/.test(name);

const namesOf = (held: Iterable<string>) => [...held].filter((name) => !isAttentionScale(name)).sort();

type Held = Map<string, HeldTensor>;
/** The engine's bytes of a tensor, from what the rank holds of it, and what it holds where nothing is quantized. */
type Difference = (held: Uint8Array, values: Uint8Array) => Uint8Array;

/**
 * A tensor that is all zero, or so small that 1/s overflows: the engine's scale is amax / 448 and its codes are ±448 all over.
 * Ours is finite: the scale is 1, the codes are zeros.
 */
const SATURATED: Difference = (_, values) =>
  // Of BF16, the negative ones apart from -0.
  Uint8Array.from(new Uint16Array(values.slice().buffer), (bits) => (bits > 0x8000 ? 0xfe : 0x7e));
const scaleOf =
  (amax: number): Difference =>
  () =>
    new Uint8Array(Float32Array.of(amax / 448).buffer);

/** Eight values lie halfway between two codes but for the last digit of 1/s, where the engine's approximation is one higher. */
const ROUNDED_UP: Difference = (held) => held.map((code, at) => (TIES.includes(at) ? code + 1 : code));
const TIES = [17, 41, 65, 89, 113, 137, 161, 185].map((col) => 8 * 208 + col);

const DIFFERENCES: Record<string, Difference> = {
  "edge-llama/v1 fp8_per_tensor model.layers.1.self_attn.qkv_proj.weight": SATURATED,
  "edge-llama/v1 fp8_per_tensor model.layers.1.self_attn.qkv_proj.weight_scale": scaleOf(5 * 2 ** -133),
  "edge-llama/v1 fp8_per_tensor model.layers.1.self_attn.o_proj.weight": SATURATED,
  "edge-llama/v1 fp8_per_tensor model.layers.1.self_attn.o_proj.weight_scale": scaleOf(0),
  "edge-llama/v1 fp8_per_block model.layers.0.mlp.down_proj.weight": ROUNDED_UP,
};

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

const isThere = ({ checkpoint }: Case) => existsSync(path.join(FIXTURES, "checkpoints", checkpoint));

describe.each(CASES.filter(isThere))("$checkpoint as $quantization on rank $rank of $ranks", (one) => {
  const planFor = async (scheme: Scheme | undefined): Promise<Plan> => {
    const directory = path.join(FIXTURES, "checkpoints", one.checkpoint);
    const { table, config } = await readCheckpointTable(directory, { allowedRoots: [FIXTURES] });
    return planned({ table, config, tensorParallelSize: one.ranks }, scheme);
  };

  it("is what the engine's own loader makes of it", async () => {
    const held: Held = await loadRank(await planFor(SCHEMES[one.quantization]), one.rank);
    const values: Held = await loadRank(await planFor("none"), one.rank);
    const expected = expectedOf(one);
    expect(namesOf(held.keys())).toEqual(namesOf(expected.keys()));
    for (const [name, parameter] of expected) {
      const { dtype, shape, bytes = new Uint8Array() } = held.get(name) ?? {};
      const found = [name, dtype, shape, sha256(bytes)];
      const wanted = [name, parameter[0], shapeInMemory(parameter), parameter[3]];
      const difference = DIFFERENCES[`${one.checkpoint} ${one.quantization} ${name}`];
      if (difference === undefined) {
        expect(found).toEqual(wanted);
        continue;
      }
      expect(found).not.toEqual(wanted);
      const engine = difference(bytes, values.get(name)?.bytes ?? new Uint8Array());
      expect([name, dtype, shape, sha256(engine)]).toEqual(wanted);
    }
  });
});

/**
 * No checkpoint of these sizes, which the engine's kernels for latent attention want, is small enough to be kept here: what can
 * be compared without one are names, dtypes and shapes. W_UK_T and W_UV are views of kv_b_proj there and matrices of their own
 * here, so of them it is the shape that is seen.
 */
describe.each(CASES.filter((one) => !isThere(one)))("$checkpoint as $quantization, by its config", (one) => {
  it("has the names, dtypes and shapes of the engine's parameters", () => {
    const file = path.join(ENGINE, `${one.checkpoint.replace("/", "-")}.config.json`);
    const config = parseModelConfig(readFileSync(file, "utf8"), file);
    const table = declaredTable(config, biased(declaredTable(config, null)));
    const plan = planned({ table, config, tensorParallelSize: one.ranks }, SCHEMES[one.quantization]);
    const held = layoutArena(plan.layout, one.rank).tensors.filter(({ name }) => !isAttentionScale(name));
    const wanted = [...expectedOf(one)].map(([name, parameter]) => {
      const isDerived = /\.W_U(K_T|V)$/.test(name);
      return [name, [parameter[0], isDerived ? parameter[1] : shapeInMemory(parameter)]];
    });
    expect(Object.fromEntries(held.map(({ name, dtype, shape }) => [name, [dtype, shape]]))).toEqual(
      Object.fromEntries(wanted),
    );
  });
});

/** What the config demands, with the router's correction bias. */
function biased({ tensors }: PlanRequest["table"]): DeclaredTensor[] {
  const bias: DeclaredTensor = { name: "model.layers.1.mlp.gate.e_score_correction_bias", dtype: "F32", shape: [16] };
  return [...[...tensors.values()].filter(({ name }) => name !== bias.name), bias];
}

function planned(
  asked: Pick<PlanRequest, "table" | "config" | "tensorParallelSize">,
  scheme: Scheme | undefined,
): Plan {
  if (scheme === undefined) throw new Error("the engine's quantization is none of ours");
  const plan = planReload({ ...asked, expertParallel: false, scheme, ignore: [], dtype: "auto" });
  checkPlan(plan, asked.table);
  return plan;
}
