// Checkpoints that are FP8 already, from the file to every rank: codes and scales as they are, values made of them where that is
// asked for, and what cannot be done refused with nothing live changed.

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Random, seededRandom } from "../schedules/random.js";
import { type Cluster, checkpoint, startCluster } from "./cluster.js";
import { editedCheckpoint, newCheckpoint } from "./edit-checkpoint.js";
import { heldTensors, type Tensors } from "./held-tensors.js";

const TP = 2;
const BLOCK = 128;
const [HEADS, NOPE, ROPE, VALUE, LATENT] = [4, 64, 64, 64, 64];
const [HIDDEN, WIDE, QUERY, VOCABULARY] = [128, 256, 128, 128];
const CONFIG = {
  architectures: ["DeepseekV3ForCausalLM"],
  model_type: "deepseek_v3",
  first_k_dense_replace: 1,
  hidden_size: HIDDEN,
  intermediate_size: WIDE,
  kv_lora_rank: LATENT,
  moe_intermediate_size: 64,
  n_routed_experts: 4,
  n_shared_experts: 1,
  num_attention_heads: HEADS,
  num_hidden_layers: 1,
  num_key_value_heads: HEADS,
  q_lora_rank: QUERY,
  qk_nope_head_dim: NOPE,
  qk_rope_head_dim: ROPE,
  quantization_config: { quant_method: "fp8", fmt: "e4m3", weight_block_size: [BLOCK, BLOCK] },
  tie_word_embeddings: false,
  torch_dtype: "bfloat16",
  v_head_dim: VALUE,
  vocab_size: VOCABULARY,
};
const LAYER = "model.layers.0.";
const ATTENTION = `${LAYER}self_attn.`;

const LINEARS: Record<string, [rows: number, cols: number]> = {
  [`${ATTENTION}q_a_proj`]: [QUERY, HIDDEN],
  [`${ATTENTION}q_b_proj`]: [HEADS * (NOPE + ROPE), QUERY],
  [`${ATTENTION}kv_a_proj_with_mqa`]: [LATENT + ROPE, HIDDEN],
  [`${ATTENTION}kv_b_proj`]: [HEADS * (NOPE + VALUE), LATENT],
  [`${ATTENTION}o_proj`]: [HIDDEN, HEADS * VALUE],
  [`${LAYER}mlp.gate_proj`]: [WIDE, HIDDEN],
  [`${LAYER}mlp.up_proj`]: [WIDE, HIDDEN],
  [`${LAYER}mlp.down_proj`]: [HIDDEN, WIDE],
};

/** Any code but the two that are no number, scales around 1. */
function blockCheckpoint(random: Random): Tensors {
  const tensors: Tensors = new Map();
  for (const [name, [rows, cols]] of Object.entries(LINEARS)) {
    const codes = Uint8Array.from({ length: rows * cols }, () => random.between(0, 0x7e) | (random.between(0, 1) << 7));
    const blocks = [Math.ceil(rows / BLOCK), Math.ceil(cols / BLOCK)] as const;
    const scales = Float32Array.from({ length: blocks[0] * blocks[1] }, () => 0.5 + random.next());
    tensors.set(`${name}.weight`, { dtype: "F8_E4M3", shape: [rows, cols], bytes: codes });
    const bytes = new Uint8Array(scales.buffer);
    tensors.set(`${name}.weight_scale_inv`, { dtype: "F32", shape: [...blocks], bytes });
  }
  const plain: Record<string, number[]> = {
    "model.embed_tokens.weight": [VOCABULARY, HIDDEN],
    "model.norm.weight": [HIDDEN],
    "lm_head.weight": [VOCABULARY, HIDDEN],
    [`${LAYER}input_layernorm.weight`]: [HIDDEN],
    [`${LAYER}post_attention_layernorm.weight`]: [HIDDEN],
    [`${ATTENTION}q_a_layernorm.weight`]: [QUERY],
    [`${ATTENTION}kv_a_layernorm.weight`]: [LATENT],
  };
  for (const [name, shape] of Object.entries(plain)) {
    const values = Uint16Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => random.between(0x3e00, 0x4000));
    tensors.set(name, { dtype: "BF16", shape, bytes: new Uint8Array(values.buffer) });
  }
  return tensors;
}

function bytesOf(tensors: Tensors, name: string): Uint8Array {
  const tensor = tensors.get(name);
  if (tensor === undefined) throw new Error(`there is no ${name} among ${[...tensors.keys()].join(", ")}`);
  return tensor.bytes;
}

const floatsOf = (bytes: Uint8Array) => new Float32Array(bytes.slice().buffer);

function valueOfCode(code: number): number {
  const [exponent, fraction] = [(code >> 3) & 15, (code & 7) / 8];
  const magnitude = exponent === 0 ? fraction * 2 ** -6 : (1 + fraction) * 2 ** (exponent - 7);
  return code & 0x80 ? -magnitude : magnitude;
}

/** The bits of the BF16 nearest to a float that is finite, of two equally near the even one. */
function bf16Bits(value: number): number {
  const [bits = 0] = new Uint32Array(Float32Array.of(value).buffer);
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

/** What the codes of a matrix mean: BF16 by row and column. */
function dequantized(codes: Uint8Array, scales: Float32Array, cols: number): number[][] {
  const blocksInRow = Math.ceil(cols / BLOCK);
  return Array.from({ length: codes.length / cols }, (_, row) =>
    Array.from({ length: cols }, (_, col) => {
      const scale = scales[Math.floor(row / BLOCK) * blocksInRow + Math.floor(col / BLOCK)] ?? Number.NaN;
      return bf16Bits(Math.fround(valueOfCode(codes[row * cols + col] ?? 0) * scale));
    }),
  );
}

const bf16Bytes = (bits: readonly number[]) => new Uint8Array(Uint16Array.from(bits).buffer);

function isSame(found: Uint8Array, expected: Uint8Array): boolean {
  return Buffer.compare(found, expected) === 0;
}

let cluster: Cluster;
beforeAll(async () => {
  cluster = await startCluster({ tp: TP });
});
afterAll(() => cluster.stop());

async function load(uri: string, recipe: string, dtype = "auto") {
  const body = { source: uri, recipe: { scheme: recipe }, dtype, install: { allow_new_layout: true } };
  expect(await cluster.reload(body)).toMatchObject({ error: null, state: "committed" });
  return Promise.all(Array.from({ length: TP }, (_, rank) => heldTensors(cluster, rank)));
}

describe("a checkpoint with block scales", () => {
  const disk = blockCheckpoint(seededRandom(7));

  it("as-stored: ranks hold its codes and scales, cut and fused by rows, unchanged", async () => {
    const ranks = await load(newCheckpoint(cluster, disk, CONFIG).uri, "as-stored");
    for (const suffix of ["weight", "weight_scale_inv"]) {
      const parts = (...names: string[]) => Buffer.concat(names.map((name) => bytesOf(disk, `${name}.${suffix}`)));
      const fused = parts(`${ATTENTION}q_a_proj`, `${ATTENTION}kv_a_proj_with_mqa`);
      for (const held of ranks)
        expect(isSame(bytesOf(held, `${ATTENTION}fused_qkv_a_proj.${suffix}`), fused)).toBe(true);
      for (const name of [`${ATTENTION}q_b_proj.${suffix}`, `${ATTENTION}kv_b_proj.${suffix}`]) {
        expect(isSame(Buffer.concat(ranks.map((held) => bytesOf(held, name))), bytesOf(disk, name))).toBe(true);
      }
      // Of each rank first its rows of gate, then its rows of up.
      const halves = ranks.map((held) => bytesOf(held, `${LAYER}mlp.gate_up_proj.${suffix}`));
      const part = (at: 0 | 1) =>
        halves.map((bytes) => bytes.subarray((at * bytes.length) / 2, ((at + 1) * bytes.length) / 2));
      expect(isSame(Buffer.concat(part(0)), bytesOf(disk, `${LAYER}mlp.gate_proj.${suffix}`))).toBe(true);
      expect(isSame(Buffer.concat(part(1)), bytesOf(disk, `${LAYER}mlp.up_proj.${suffix}`))).toBe(true);
    }
  });

  it("as-stored: W_UK_T and W_UV are what kv_b_proj's codes mean, head by head, after a second reload too", async () => {
    for (const seed of [8, 9]) {
      const tensors = blockCheckpoint(seededRandom(seed));
      for (const held of await load(newCheckpoint(cluster, tensors, CONFIG).uri, "as-stored")) {
        const scales = floatsOf(bytesOf(held, `${ATTENTION}kv_b_proj.weight_scale_inv`));
        const values = dequantized(bytesOf(held, `${ATTENTION}kv_b_proj.weight`), scales, LATENT);
        const heads = Array.from({ length: HEADS / TP }, (_, head) => {
          return values.slice(head * (NOPE + VALUE), (head + 1) * (NOPE + VALUE));
        });
        const upper = heads.flatMap((rows) => rows.slice(0, NOPE).flat());
        const lower = heads.flatMap((rows) =>
          Array.from({ length: LATENT }, (_, col) => rows.slice(NOPE).map((row) => row[col] ?? 0)).flat(),
        );
        expect(held.get(`${ATTENTION}mla_attn.W_UK_T`)).toMatchObject({
          dtype: "BF16",
          shape: [HEADS / TP, NOPE, LATENT],
        });
        expect(held.get(`${ATTENTION}mla_attn.W_UV`)).toMatchObject({
          dtype: "BF16",
          shape: [HEADS / TP, LATENT, VALUE],
        });
        expect(isSame(bytesOf(held, `${ATTENTION}mla_attn.W_UK_T`), bf16Bytes(upper))).toBe(true);
        expect(isSame(bytesOf(held, `${ATTENTION}mla_attn.W_UV`), bf16Bytes(lower))).toBe(true);
      }
    }
  });

  it("none with dtype bfloat16: ranks hold code times scale, rounded once", async () => {
    const ranks = await load(newCheckpoint(cluster, disk, CONFIG).uri, "none", "bfloat16");
    for (const name of [`${ATTENTION}q_b_proj`, `${ATTENTION}kv_b_proj`]) {
      const scales = floatsOf(bytesOf(disk, `${name}.weight_scale_inv`));
      const values = dequantized(bytesOf(disk, `${name}.weight`), scales, LINEARS[name]?.[1] ?? 0);
      const held = Buffer.concat(ranks.map((tensors) => bytesOf(tensors, `${name}.weight`)));
      expect(isSame(held, bf16Bytes(values.flat()))).toBe(true);
      for (const tensors of ranks) expect(tensors.has(`${name}.weight_scale_inv`)).toBe(false);
    }
  });
});

describe("a checkpoint with exponents for scales", () => {
  const disk = blockCheckpoint(seededRandom(11));
  const powers = new Map<string, Float32Array>();
  for (const [name, { shape }] of [...disk].filter(([name]) => name.endsWith("_scale_inv"))) {
    const exponents = Uint8Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, at) => 120 + ((at * 5) % 13));
    disk.set(name, { dtype: "F8_E8M0", shape, bytes: exponents });
    powers.set(
      name,
      Float32Array.from(exponents, (exponent) => 2 ** (exponent - 127)),
    );
  }
  const config = { ...CONFIG, quantization_config: { ...CONFIG.quantization_config, scale_fmt: "ue8m0" } };
  const whole = (ranks: readonly Tensors[], name: string) => Buffer.concat(ranks.map((held) => bytesOf(held, name)));

  it("as-stored: ranks hold the same codes, and the powers of two as F32", async () => {
    const ranks = await load(newCheckpoint(cluster, disk, config).uri, "as-stored");
    for (const name of [`${ATTENTION}q_b_proj`, `${ATTENTION}kv_b_proj`]) {
      expect(isSame(whole(ranks, `${name}.weight`), bytesOf(disk, `${name}.weight`))).toBe(true);
      const expected = new Uint8Array(powers.get(`${name}.weight_scale_inv`)?.buffer ?? new ArrayBuffer());
      expect(isSame(whole(ranks, `${name}.weight_scale_inv`), expected)).toBe(true);
    }
  });

  it("none with dtype bfloat16: ranks hold code times power", async () => {
    const ranks = await load(newCheckpoint(cluster, disk, config).uri, "none", "bfloat16");
    for (const name of [`${ATTENTION}q_b_proj`, `${ATTENTION}kv_b_proj`]) {
      const scales = powers.get(`${name}.weight_scale_inv`) ?? new Float32Array();
      const values = dequantized(bytesOf(disk, `${name}.weight`), scales, LINEARS[name]?.[1] ?? 0);
      expect(isSame(whole(ranks, `${name}.weight`), bf16Bytes(values.flat()))).toBe(true);
    }
  });
});

describe("what cannot be done is refused, and nothing live has changed", () => {
  const PER_TENSOR = ["tiny-qwen3-moe-fp8", "v1"] as const;
  const changeScale = (name: string) => (tensors: Tensors) => {
    bytesOf(tensors, name).set(new Uint8Array(Float32Array.of(0.0625).buffer));
  };

  async function refuses(source: string, body: object, code: string, words: readonly string[]): Promise<void> {
    const before = await cluster.exportAll();
    const reload = await cluster.reload({ source, install: { allow_new_layout: true }, ...body });
    expect(reload).toMatchObject({ state: "failed", live_changed: false, error: { code, retryable: false } });
    for (const word of words) expect(reload.error?.message).toContain(word);
    expect(await cluster.exportAll()).toEqual(before);
    expect(await cluster.client.fleet(cluster.fleet)).toMatchObject({ routable: true, torn: false });
  }

  it.each([
    [`${ATTENTION}k_proj.weight_scale`, `${ATTENTION}q_proj.weight_scale`],
    [`${ATTENTION}v_proj.input_scale`, `${ATTENTION}q_proj.input_scale`],
    [`${LAYER}mlp.experts.1.up_proj.weight_scale`, `${LAYER}mlp.experts.1.gate_proj.weight_scale`],
  ])("%s other than %s: both are named, and what would work", async (changed, other) => {
    const { uri } = editedCheckpoint(cluster, changeScale(changed), PER_TENSOR);
    await load(checkpoint(...PER_TENSOR), "as-stored");
    const words = [changed, other, "dtype bfloat16", "fp8-tensor"];
    await refuses(uri, { recipe: { scheme: "as-stored" } }, "unsupported_recipe", words);
    await load(uri, "fp8-tensor", "bfloat16");
  });

  it("FP8 codes under another recipe, when the request does not say what values they are to be", async () => {
    const words = ["dtype", "bfloat16", "as-stored"];
    for (const scheme of ["none", "fp8-channel"]) {
      await refuses(checkpoint(...PER_TENSOR), { recipe: { scheme } }, "unsupported_dtype", words);
    }
  });

  it("a rank's boundary within a block that has one scale", async () => {
    const narrow = { ...CONFIG, intermediate_size: 128 };
    const tensors = blockCheckpoint(seededRandom(1));
    for (const [name, shape] of [
      ["gate", [128, HIDDEN]],
      ["up", [128, HIDDEN]],
      ["down", [HIDDEN, 128]],
    ] as const) {
      const module = `${LAYER}mlp.${name}_proj`;
      tensors.set(`${module}.weight`, { dtype: "F8_E4M3", shape: [...shape], bytes: new Uint8Array(128 * HIDDEN) });
      tensors.set(`${module}.weight_scale_inv`, {
        dtype: "F32",
        shape: [1, 1],
        bytes: new Uint8Array([0, 0, 128, 63]),
      });
    }
    const { uri } = newCheckpoint(cluster, tensors, narrow);
    await refuses(uri, { recipe: { scheme: "as-stored" } }, "indivisible", ["128", `${LAYER}mlp.gate_`]);
    await load(uri, "fp8-block", "bfloat16");
  });
});
