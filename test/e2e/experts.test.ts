// Expert parallel: ranks hold whole experts, not evenly many, and put together they hold what one rank would.

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { SCHEME_NAMES } from "../../orchestrator/contract/recipe.js";
import { seededRandom } from "../schedules/random.js";
import { type Cluster, startCluster } from "./cluster.js";
import { newCheckpoint } from "./edit-checkpoint.js";
import { heldTensors, type Tensors } from "./held-tensors.js";

const EXPERTS = 8;
const CONFIG = {
  architectures: ["Qwen3MoeForCausalLM"],
  model_type: "qwen3_moe",
  decoder_sparse_step: 1,
  head_dim: 16,
  hidden_size: 96,
  intermediate_size: 192,
  moe_intermediate_size: 40,
  num_attention_heads: 6,
  num_experts: EXPERTS,
  num_hidden_layers: 2,
  num_key_value_heads: 6,
  tie_word_embeddings: false,
  torch_dtype: "bfloat16",
  vocab_size: 190,
};

/** Random BF16 values of either sign, around 1. */
function tensorsOf(seed: number, expertCount = EXPERTS): Tensors {
  const random = seededRandom(seed);
  const { hidden_size: hidden, moe_intermediate_size: wide, head_dim: size, num_attention_heads: heads } = CONFIG;
  const shapes: Record<string, number[]> = { "model.embed_tokens.weight": [CONFIG.vocab_size, hidden] };
  for (let layer = 0; layer < CONFIG.num_hidden_layers; layer++) {
    const prefix = `model.layers.${layer}.`;
    for (const norm of ["input_layernorm", "post_attention_layernorm"]) shapes[`${prefix}${norm}.weight`] = [hidden];
    for (const norm of ["q_norm", "k_norm"]) shapes[`${prefix}self_attn.${norm}.weight`] = [size];
    for (const part of ["q", "k", "v"]) shapes[`${prefix}self_attn.${part}_proj.weight`] = [heads * size, hidden];
    shapes[`${prefix}self_attn.o_proj.weight`] = [hidden, heads * size];
    shapes[`${prefix}mlp.gate.weight`] = [expertCount, hidden];
    for (let expert = 0; expert < expertCount; expert++) {
      const name = (part: string) => `${prefix}mlp.experts.${expert}.${part}_proj.weight`;
      shapes[name("gate")] = [wide, hidden];
      shapes[name("up")] = [wide, hidden];
      shapes[name("down")] = [hidden, wide];
    }
  }
  Object.assign(shapes, { "model.norm.weight": [hidden], "lm_head.weight": [CONFIG.vocab_size, hidden] });
  return new Map(
    Object.entries(shapes).map(([name, shape]) => {
      const values = Uint16Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => {
        return (random.between(0, 1) << 15) | random.between(0x3e00, 0x4000);
      });
      return [name, { dtype: "BF16" as const, shape, bytes: new Uint8Array(values.buffer) }];
    }),
  );
}

/** The same, gate and up of all experts in one tensor, down in another. */
function stacked(tensors: Tensors): Tensors {
  const made: Tensors = new Map([...tensors].filter(([name]) => !name.includes(".experts.")));
  const { hidden_size: hidden, moe_intermediate_size: wide } = CONFIG;
  for (let layer = 0; layer < CONFIG.num_hidden_layers; layer++) {
    const prefix = `model.layers.${layer}.mlp.experts.`;
    const all = (parts: string[]) => {
      const each = Array.from({ length: EXPERTS }, (_, expert) =>
        parts.map((part) => `${prefix}${expert}.${part}_proj.weight`),
      );
      return Buffer.concat(each.flat().map((name) => tensors.get(name)?.bytes ?? new Uint8Array()));
    };
    const put = (name: string, shape: number[], parts: string[]) =>
      made.set(prefix + name, { dtype: "BF16", shape: [EXPERTS, ...shape], bytes: all(parts) });
    put("gate_up_proj", [2 * wide, hidden], ["gate", "up"]);
    put("down_proj", [hidden, wide], ["down"]);
  }
  return made;
}

function experts(tensors: Tensors): [string, { shape: number[]; bytes: Uint8Array }][] {
  return [...tensors].filter(([name]) => name.includes(".experts."));
}

describe.each([2, 3])("with %i ranks", (tp) => {
  let whole: Cluster;
  let parts: Cluster;
  beforeAll(async () => {
    [whole, parts] = await Promise.all([startCluster({ tp: 1 }), startCluster({ tp, ep: true })]);
  });
  afterAll(() => Promise.all([whole.stop(), parts.stop()]));

  it.each(SCHEME_NAMES)(
    "%s: their experts, one rank's behind the other's, are those that one rank holds alone",
    async (scheme) => {
      for (const seed of [1, 2]) {
        for (const cluster of [whole, parts]) {
          const { uri } = newCheckpoint(cluster, tensorsOf(seed), CONFIG);
          const body = { source: uri, recipe: { scheme }, install: { allow_new_layout: true } };
          expect(await cluster.reload(body)).toMatchObject({ error: null, state: "committed" });
        }
        const alone = await heldTensors(whole, 0);
        const held = await Promise.all(Array.from({ length: tp }, (_, rank) => heldTensors(parts, rank)));
        expect(experts(alone).length).toBeGreaterThan(0);
        for (const [name, { shape, bytes }] of experts(alone)) {
          const those = held.map((tensors) => tensors.get(name));
          const counts = those.map((tensor) => tensor?.shape[0]);
          expect(counts).toEqual(tp === 2 ? [4, 4] : [3, 3, 2]);
          for (const tensor of those) expect(tensor?.shape.slice(1)).toEqual(shape.slice(1));
          expect(Buffer.compare(Buffer.concat(those.map((tensor) => tensor?.bytes ?? new Uint8Array())), bytes)).toBe(
            0,
          );
        }
      }
    },
  );

  it("the fleet says so, and reads no other rank's experts", async () => {
    expect(await parts.client.fleet(parts.fleet)).toMatchObject({ tensor_parallel_size: tp, expert_parallel: true });
    expect(await whole.client.fleet(whole.fleet)).toMatchObject({ expert_parallel: false });
    const { uri } = newCheckpoint(parts, tensorsOf(3), CONFIG);
    const source = { kind: "safetensors" as const, uri };
    const plan = await parts.client.plan({ source, fleet: parts.fleet });
    expect(plan).toMatchObject({ tensor_parallel_size: tp, expert_parallel: true });
    const cut = await parts.client.plan({
      source,
      fleet: parts.fleet,
      tensor_parallel_size: 2,
      expert_parallel: false,
    });
    expect(cut.expert_parallel).toBe(false);
    const reload = await parts.reload({ source: uri, install: { allow_new_layout: true } });
    // Where a rank has some of a row's columns, those between are read too: at most all of o_proj.
    const gaps = 2 * CONFIG.hidden_size * CONFIG.hidden_size * CONFIG.num_hidden_layers;
    for (const { rank, bytes_read } of reload.ranks) {
      const planned = plan.ranks[rank]?.read_bytes ?? 0;
      expect(bytes_read).toBeGreaterThanOrEqual(planned);
      expect(bytes_read).toBeLessThanOrEqual(planned + gaps);
    }
    const expertBytes = 2 * 3 * CONFIG.moe_intermediate_size * CONFIG.hidden_size * CONFIG.num_hidden_layers;
    const planned = plan.ranks.map(({ read_bytes }) => read_bytes);
    // The vocabulary is padded to 192 rows, of which the last rank has those that are on no disk; of embedding and head.
    const padBytes = 2 * (192 - CONFIG.vocab_size) * CONFIG.hidden_size * 2;
    expect((planned[0] ?? 0) - (planned.at(-1) ?? 0)).toBe(padBytes + (tp === 2 ? 0 : expertBytes));
  });

  it("a reload and a rollback bring each rank's experts back", async () => {
    const held = () => parts.exportAll();
    const before = await held();
    const { uri } = newCheckpoint(parts, tensorsOf(4), CONFIG);
    expect((await parts.reload({ source: uri })).state).toBe("committed");
    expect(await held()).not.toEqual(before);
    const rollback = await parts.client.rollback(parts.fleet, {});
    expect((await parts.ended(rollback.reload_id)).state).toBe("committed");
    expect(await held()).toEqual(before);
  });

  it("experts that are stacked on disk, or pushed so, fill the same arena: nothing is asked for, and undo is kept", async () => {
    const tensors = tensorsOf(6);
    expect((await parts.reload({ source: newCheckpoint(parts, tensors, CONFIG).uri })).state).toBe("committed");
    const before = await parts.exportAll();
    const { uri } = newCheckpoint(parts, stacked(tensors), CONFIG);
    expect(await parts.reload({ source: uri })).toMatchObject({ error: null, state: "committed" });
    expect(await parts.exportAll()).toEqual(before);
    const rollback = await parts.client.rollback(parts.fleet, {});
    const ended = await parts.ended(rollback.reload_id);
    expect(ended).toMatchObject({ error: null, state: "committed" });
    expect(ended.ranks.map(({ bytes_read }) => bytes_read)).toEqual(new Array(tp).fill(0));
    expect(await parts.exportAll()).toEqual(before);
  });

  it("with fewer experts than ranks some have none, and all commit all the same", async () => {
    const expertCount = tp - 1;
    const { uri } = newCheckpoint(parts, tensorsOf(5, expertCount), { ...CONFIG, num_experts: expertCount });
    const body = { source: uri, recipe: { scheme: "fp8-channel" } };
    expect((await parts.reload({ ...body, install: { allow_new_layout: true } })).state).toBe("committed");
    expect((await parts.reload(body)).state).toBe("committed");
    const held = await Promise.all(Array.from({ length: tp }, (_, rank) => heldTensors(parts, rank)));
    for (const [rank, tensors] of held.entries()) {
      const counts = experts(tensors).map(([, { shape }]) => shape[0]);
      expect(new Set(counts)).toEqual(new Set([rank < expertCount ? 1 : 0]));
    }
  });
});
