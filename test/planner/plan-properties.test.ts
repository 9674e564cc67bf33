import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DTYPES } from "../../orchestrator/contract/dtype.js";
import type { ArenaLayout, CheckpointTensor } from "../../orchestrator/contract/plan.js";
import { checkPlan } from "../../orchestrator/planner/check/check-plan.js";
import { planReload } from "../../orchestrator/planner/plan-reload.js";
import { layoutArena } from "../../orchestrator/program/arena-layout.js";
import { encoded, type FilledArena, fillArena } from "../program/interpret-program.js";
import { type ConfigFields, finite, type Synthetic, shapesOf, synthesize } from "./synthetic-checkpoint.js";

interface Case {
  fields: ConfigFields;
  ranks: number;
  fileCount: number;
}

const FAMILIES = [
  ["LlamaForCausalLM", "llama"],
  ["MistralForCausalLM", "mistral"],
  ["Qwen2ForCausalLM", "qwen2"],
  ["Qwen3ForCausalLM", "qwen3"],
] as const;

/** Any model that T ranks can share: q heads a multiple of T, key/value heads a multiple or a divisor. */
const cases: fc.Arbitrary<Case> = fc.constantFrom(1, 2, 3, 4, 8).chain((ranks) =>
  fc.record({
    ranks: fc.constant(ranks),
    fileCount: fc.integer({ min: 1, max: 4 }),
    fields: fc
      .record({
        family: fc.constantFrom(...FAMILIES),
        hidden: fc.integer({ min: 1, max: 20 }),
        wide: fc.integer({ min: 1, max: 6 }),
        headsEach: fc.integer({ min: 1, max: 3 }),
        // Key/value heads: k·T, or one of the divisors of T.
        keyValueHeads: fc.oneof(
          fc.integer({ min: 1, max: 2 }).map((times) => times * ranks),
          fc.constantFrom(...[1, 2, 3, 4, 8].filter((heads) => ranks % heads === 0)),
        ),
        headSize: fc.integer({ min: 1, max: 5 }),
        layers: fc.integer({ min: 1, max: 3 }),
        vocabulary: fc.integer({ min: 1, max: 200 }),
        tied: fc.boolean(),
        attentionBias: fc.boolean(),
        mlpBias: fc.boolean(),
      })
      // Padded to 64, a vocabulary divides by 3 only if the padded size does.
      .filter(({ vocabulary }) => ranks !== 3 || Math.ceil(vocabulary / 64) % 3 === 0)
      .map(
        (model): ConfigFields => ({
          architectures: [model.family[0]],
          model_type: model.family[1],
          hidden_size: model.hidden,
          intermediate_size: model.wide * ranks,
          num_attention_heads: model.headsEach * ranks,
          num_key_value_heads: model.keyValueHeads,
          head_dim: model.headSize,
          num_hidden_layers: model.layers,
          vocab_size: model.vocabulary,
          tie_word_embeddings: model.tied,
          attention_bias: model.attentionBias,
          mlp_bias: model.mlpBias,
        }),
      ),
  }),
);

function checkpointOf({ fields, fileCount }: Case): Synthetic {
  return synthesize(fields, shapesOf(fields), { fileCount });
}

function planOf({ table, config }: Synthetic, ranks: number) {
  const plan = planReload({
    table,
    config,
    tensorParallelSize: ranks,
    expertParallel: false,
    scheme: "none",
    ignore: [],
    dtype: "auto",
  });
  checkPlan(plan, table);
  return { plan, arena: layoutArena(plan.layout, 0) };
}

function bytesOf(arena: ArenaLayout, { bytes }: FilledArena, name: string): Uint8Array {
  const tensor = arena.tensors.find((candidate) => candidate.name === name);
  if (tensor === undefined) throw new Error(`the arena has no ${name}`);
  return bytes.subarray(tensor.offset, tensor.offset + tensor.bytes);
}

function sourceBytes({ files, table }: Synthetic, { file, offset, shape }: CheckpointTensor): Uint8Array {
  const bytes = files.get(table.files[file]?.path ?? "") ?? new Uint8Array();
  return bytes.subarray(offset, offset + shape.reduce((product, size) => product * size, 1) * DTYPES.BF16.bytes);
}

/** Where the rows of each part lie in the fused tensor, and how the ranks' pieces make the whole again. */
const FUSED: Record<string, [fused: string, parts: string[]]> = {
  q_proj: ["qkv_proj", ["q_proj", "k_proj", "v_proj"]],
  k_proj: ["qkv_proj", ["q_proj", "k_proj", "v_proj"]],
  v_proj: ["qkv_proj", ["q_proj", "k_proj", "v_proj"]],
  gate_proj: ["gate_up_proj", ["gate_proj", "up_proj"]],
  up_proj: ["gate_up_proj", ["gate_proj", "up_proj"]],
};

/** The checkpoint tensor put together again from what all ranks hold: the inverse of the rules, written apart from them. */
function rebuilt(
  name: string,
  shape: number[],
  { fields, ranks }: Case,
  held: (name: string) => Uint8Array[],
): Uint8Array {
  const module = name.split(".").at(-2) ?? "";
  const [rows = 1, cols = 1] = shape;
  const fusion = FUSED[module];
  if (fusion !== undefined) {
    const localRows = (part: string) => {
      if (part === "gate_proj" || part === "up_proj") return fields.intermediate_size / ranks;
      const heads = part === "q_proj" ? fields.num_attention_heads : (fields.num_key_value_heads ?? 0);
      return Math.max(1, heads / ranks) * (fields.head_dim ?? 0);
    };
    const [fused, parts] = fusion;
    const before = parts.slice(0, parts.indexOf(module)).reduce((sum, part) => sum + localRows(part), 0);
    const rowBytes = cols * 2;
    const replicas =
      module === "k_proj" || module === "v_proj" ? Math.max(1, ranks / (fields.num_key_value_heads ?? 1)) : 1;
    const pieces = held(name.replace(module, fused)).map((bytes) =>
      bytes.subarray(before * rowBytes, (before + localRows(module)) * rowBytes),
    );
    pieces.forEach((piece, rank) => {
      expect(piece).toEqual(pieces[rank - (rank % replicas)]);
    });
    return Buffer.concat(pieces.filter((_, rank) => rank % replicas === 0));
  }
  const pieces = held(name);
  if (module === "embed_tokens" || module === "lm_head") {
    const padded = Buffer.concat(pieces);
    expect(padded.subarray(rows * cols * 2).every((byte) => byte === 0)).toBe(true);
    return padded.subarray(0, rows * cols * 2);
  }
  if ((module === "o_proj" || module === "down_proj") && name.endsWith(".weight")) {
    const localBytes = (cols / ranks) * 2;
    const inOrder = Array.from({ length: rows }, (_, row) =>
      pieces.map((piece) => piece.subarray(row * localBytes, (row + 1) * localBytes)),
    );
    return Buffer.concat(inOrder.flat());
  }
  for (const piece of pieces) expect(piece).toEqual(pieces[0]);
  return pieces[0] ?? new Uint8Array();
}

describe("a plan of any model for any number of ranks", () => {
  it("gives all ranks together every checkpoint tensor, replicas alike, and writes every kernel byte once", () => {
    fc.assert(
      fc.property(cases, (model) => {
        const checkpoint = checkpointOf(model);
        const { plan, arena } = planOf(checkpoint, model.ranks);
        const filled = Array.from({ length: model.ranks }, (_, rank) => fillArena(plan, arena, rank, checkpoint.files));
        const held = (name: string) => filled.map((one) => bytesOf(arena, one, name));
        for (const tensor of checkpoint.table.tensors.values()) {
          const whole = rebuilt(tensor.name, tensor.shape, model, held);
          expect(Buffer.compare(whole, sourceBytes(checkpoint, tensor)), tensor.name).toBe(0);
        }
        const expected = new Uint8Array(arena.dataBytes);
        for (const { offset, bytes } of arena.tensors) expected.fill(1, offset, offset + bytes);
        for (const { writes } of filled) expect(Buffer.compare(writes, expected)).toBe(0);
      }),
      { numRuns: 60 },
    );
  });

  it("for one rank holds the checkpoint as it is, parts stacked", () => {
    fc.assert(
      fc.property(cases, (model) => {
        const one = { ...model, ranks: 1 };
        const checkpoint = checkpointOf(one);
        const { plan, arena } = planOf(checkpoint, 1);
        const filled = fillArena(plan, arena, 0, checkpoint.files);
        const tensorBytes = (name: string) => {
          const tensor = checkpoint.table.tensors.get(name);
          return tensor === undefined ? new Uint8Array() : sourceBytes(checkpoint, tensor);
        };
        for (let layer = 0; layer < model.fields.num_hidden_layers; layer++) {
          const prefix = `model.layers.${layer}.`;
          const stacked = (names: string[]) =>
            Buffer.concat(names.map((name) => tensorBytes(`${prefix}${name}.weight`)));
          const held = (name: string) => bytesOf(arena, filled, `${prefix}${name}.weight`);
          const qkv = stacked(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]);
          expect(Buffer.compare(held("self_attn.qkv_proj"), qkv)).toBe(0);
          expect(Buffer.compare(held("mlp.gate_up_proj"), stacked(["mlp.gate_proj", "mlp.up_proj"]))).toBe(0);
          expect(Buffer.compare(held("mlp.down_proj"), stacked(["mlp.down_proj"]))).toBe(0);
        }
      }),
      { numRuns: 20 },
    );
  });
});

/** The checkpoint whose F32 tensors were rounded to BF16 when it was written. */
function roundedBeforehand(mixed: Synthetic, { fields, fileCount }: Case): Synthetic {
  const rounded = synthesize(fields, shapesOf(fields), { fileCount });
  const bytesOf = ({ table, files }: Synthetic, file: number) =>
    files.get(table.files[file]?.path ?? "") ?? new Uint8Array();
  for (const { name, dtype, file, offset, shape } of mixed.table.tensors.values()) {
    const to = rounded.table.tensors.get(name);
    const elements = shape.reduce((product, size) => product * size, 1);
    const from = bytesOf(mixed, file);
    const view = new DataView(from.buffer, from.byteOffset);
    for (let element = 0; element < elements; element++) {
      const value =
        dtype === "F32"
          ? encoded(view.getFloat32(offset + 4 * element, true), DTYPES.BF16.code)
          : from.subarray(offset + 2 * element, offset + 2 * element + 2);
      bytesOf(rounded, to?.file ?? 0).set(value, (to?.offset ?? 0) + 2 * element);
    }
  }
  return rounded;
}

describe("a checkpoint of which some tensors are F32, others BF16", () => {
  it("is, where the request rounds it to BF16, the one that was rounded beforehand, with the same layout", () => {
    fc.assert(
      fc.property(cases, fc.nat(), ({ ranks, ...model }, seed) => {
        const names = Object.keys(shapesOf(model.fields));
        const dtypes = Object.fromEntries(
          names.map((name, at) => [name, (seed >> (at % 31)) & 1 ? "F32" : "BF16"] as const),
        );
        const mixed = finite(synthesize(model.fields, shapesOf(model.fields), { fileCount: model.fileCount, dtypes }));
        const rounded = roundedBeforehand(mixed, { ranks, ...model });
        const asked = { tensorParallelSize: ranks, expertParallel: false, scheme: "none", ignore: [] } as const;
        const [plan, expected] = [mixed, rounded].map((one) => planReload({ ...one, ...asked, dtype: "bfloat16" }));
        if (plan === undefined || expected === undefined) throw new Error("there are two");
        checkPlan(plan, mixed.table);
        expect(plan.layoutDigest).toBe(expected.layoutDigest);
        const arena = layoutArena(plan.layout, ranks - 1);
        const held = fillArena(plan, arena, ranks - 1, mixed.files);
        expect(Buffer.compare(held.bytes, fillArena(expected, arena, ranks - 1, rounded.files).bytes)).toBe(0);
      }),
      { numRuns: 60, interruptAfterTimeLimit: 15_000 },
    );
  });
});
