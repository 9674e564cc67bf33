import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DTYPES, type RequestDType } from "../../orchestrator/contract/dtype.js";
import type { ArenaTensor, Plan } from "../../orchestrator/contract/plan.js";
import type { Recipe } from "../../orchestrator/contract/recipe.js";
import { checkPlan } from "../../orchestrator/planner/check/check-plan.js";
import { planReload } from "../../orchestrator/planner/plan-reload.js";
import { layoutArenas } from "../../orchestrator/program/arena-layout.js";
import { decoded, encoded, fillArena } from "../program/interpret-program.js";
import { makeUpExperts } from "./made-up-experts.js";
import type { Synthetic } from "./synthetic-checkpoint.js";
import {
  besideEachOther,
  diskOf,
  expertsOf,
  type Matrix,
  type MoeCase,
  moeCases,
  moeCheckpoint,
  quantizedOnDisk,
  rowsFrom,
  type ScaleKind,
  stackRows,
  transpose,
} from "./synthetic-moe.js";

/** What the ranks hold, by kernel tensor: one matrix an expert, or one. */
type Held = Map<string, Matrix[]>;

/** Plans for so many ranks, fills their arenas, and sees that every byte of a tensor is written once and no other. */
function heldBy(
  checkpoint: Synthetic,
  request: { ranks: number; expertParallel: boolean; scheme: Recipe; dtype: RequestDType },
  change: (plan: Plan) => void = () => {},
): { plan: Plan; held: Held[] } {
  const { table, config, files } = checkpoint;
  const { ranks, ...asked } = request;
  const plan = planReload({ table, config, tensorParallelSize: ranks, ignore: [], ...asked });
  checkPlan(plan, table);
  change(plan);
  const held = layoutArenas(plan.layout).map((arena, rank) => {
    const { bytes, writes } = fillArena(plan, arena, rank, files);
    const expected = new Uint8Array(arena.dataBytes);
    for (const tensor of arena.tensors) expected.fill(1, tensor.offset, tensor.offset + tensor.bytes);
    expect(Buffer.compare(writes, expected)).toBe(0);
    return new Map(arena.tensors.map((tensor) => [tensor.name, matricesOf(tensor, bytes)]));
  });
  return { plan, held };
}

function matricesOf({ dtype, shape, offset, bytes }: ArenaTensor, arena: Uint8Array): Matrix[] {
  const [rows = 1, cols = 1] = shape.length === 1 ? [shape[0]] : shape.slice(-2);
  const count = shape.length === 3 ? (shape[0] ?? 0) : 1;
  const elementBytes = DTYPES[dtype].bytes;
  const isVector = shape.length < 2;
  const each = bytes / Math.max(1, count);
  return Array.from({ length: count }, (_, matrix) => {
    const start = offset + matrix * each;
    return { rows, cols, elementBytes, isVector, bytes: arena.subarray(start, start + each) };
  });
}

/** The kernel tensor of one rank, put together from those of all ranks. */
function joined(name: string, pieces: Matrix[][], { fields, expertParallel }: MoeCase): Matrix[] {
  const first = pieces[0] ?? [];
  const isVector = first[0]?.isVector ?? false;
  if (name.includes(".experts.w") && expertParallel) return isVector ? [stackRows(pieces.flat())] : pieces.flat();
  if (name.includes("mla_attn.W_U")) return pieces.flat();
  // No vector of these models is cut.
  const join = isVector ? null : joinOf(name, fields);
  const isOneEach = first.every((matrix, at) => pieces.every((rank) => sameBytes(rank[at], matrix)));
  if (join === null) {
    expect(isOneEach, `${name} is the same on all ranks`).toBe(true);
    return first;
  }
  return first.map((_, matrix) => join(pieces.map((rank) => rank[matrix] ?? EMPTY)));
}

const EMPTY: Matrix = { rows: 0, cols: 0, elementBytes: 1, bytes: new Uint8Array() };

function sameBytes(one: Matrix | undefined, other: Matrix): boolean {
  return one !== undefined && Buffer.compare(one.bytes, other.bytes) === 0;
}

/** How pieces of a kernel tensor go together; null: each rank has it whole. */
function joinOf(name: string, fields: MoeCase["fields"]): ((pieces: Matrix[]) => Matrix) | null {
  // One scale a row, and each rank has something of each row.
  if (/(o_proj|down_proj|w2)[._]weight/.test(name)) return name.endsWith("_scale") ? null : besideEachOther;
  if (/(embed_tokens|lm_head|q_b_proj|kv_b_proj|self_attn\.q_proj)\.weight/.test(name)) return stackRows;
  const keyValueHeads = fields.num_key_value_heads ?? 0;
  const parts = name.includes("qkv_proj")
    ? [fields.num_attention_heads, keyValueHeads, keyValueHeads]
    : /(gate_up_proj|w13)[._]weight/.test(name)
      ? [1, 1]
      : null;
  if (parts === null) return null;
  const all = parts.reduce((sum, part) => sum + part, 0);
  return (pieces) => {
    let before = 0;
    return stackRows(
      parts.flatMap((part) => {
        const first = before;
        before += part;
        return pieces.map((piece) => rowsFrom(piece, (piece.rows * first) / all, (piece.rows * part) / all));
      }),
    );
  };
}

function checkSame(found: Matrix[], expected: Matrix[], name: string): void {
  expect(found.length, name).toBe(expected.length);
  found.forEach((matrix, at) => {
    expect(Buffer.compare(matrix.bytes, expected[at]?.bytes ?? EMPTY.bytes), `${name}, matrix ${at}`).toBe(0);
  });
}

/** All ranks together are one rank. */
function checkJoined(model: MoeCase, many: Held[], one: Held): void {
  for (const [name, whole] of one)
    checkSame(
      joined(
        name,
        many.map((rank) => rank.get(name) ?? []),
        model,
      ),
      whole,
      name,
    );
}

/** What one rank holds of the checkpoint's own values, or codes, under this kernel name. */
function fused(name: string, { fields, form }: MoeCase, disk: (name: string) => Matrix): Matrix[] | null {
  const weight = (module: string) => disk(`${module}.weight`);
  const module = name.replace(/\.weight$/, "");
  const at = module.slice(0, module.lastIndexOf(".") + 1);
  const isOnDisk = fields.model_type === "phi3";
  if (name.endsWith("experts.w13_weight") || name.endsWith("experts.w2_weight"))
    return Array.from({ length: expertsOf(fields) }, (_, expert) => expertOnDisk(name, expert, fields, form, disk));
  if (module.endsWith("fused_qkv_a_proj"))
    return [stackRows([weight(`${at}q_a_proj`), weight(`${at}kv_a_proj_with_mqa`)])];
  if (module.endsWith("qkv_proj") && !isOnDisk)
    return [stackRows(["q_proj", "k_proj", "v_proj"].map((part) => weight(at + part)))];
  if (module.endsWith("gate_up_proj") && !(isOnDisk && !name.includes("shared")))
    return [stackRows(["gate_proj", "up_proj"].map((part) => weight(at + part)))];
  if (name.endsWith(".weight")) return [weight(module)];
  if (name.endsWith("e_score_correction_bias")) return [disk(name)];
  return null;
}

function expertOnDisk(
  name: string,
  expert: number,
  fields: MoeCase["fields"],
  form: MoeCase["form"],
  disk: (name: string) => Matrix,
): Matrix {
  const prefix = name.slice(0, name.lastIndexOf(".") + 1);
  const count = expertsOf(fields);
  const isDown = name.endsWith("w2_weight");
  const parts = isDown ? ["down_proj"] : ["gate_proj", "up_proj"];
  if (form === "each") return stackRows(parts.map((part) => disk(`${prefix}${expert}.${part}.weight`)));
  const ofExpert = (tensor: string) => {
    const all = disk(prefix + tensor);
    return rowsFrom(all, (expert * all.rows) / count, all.rows / count);
  };
  if (form === "apart") return stackRows(parts.map(ofExpert));
  const matrix = ofExpert(isDown ? "down_proj" : "gate_up_proj");
  return form === "transposed" ? transpose(matrix) : matrix;
}

describe("a plan of a model with experts, latent attention or tensors fused on disk", () => {
  it("for one rank holds the checkpoint as it is, parts stacked, and heads of kv_b_proj taken apart", () => {
    fc.assert(
      fc.property(moeCases(1, { most: 6, ranks: [1] }), (model) => {
        const checkpoint = moeCheckpoint(model);
        const { held } = heldBy(checkpoint, { ...model, scheme: "none", dtype: "auto" });
        const one = held[0] ?? new Map<string, Matrix[]>();
        const disk = diskOf(checkpoint);
        for (const [name, matrices] of one) {
          if (name.includes("mla_attn.W_U")) checkSame(matrices, headsOf(name, model, disk), name);
          else if (/embed_tokens|lm_head/.test(name)) continue;
          else if (!name.includes("attn.")) checkSame(matrices, fused(name, model, disk) ?? [], name);
          else checkSame(matrices, fused(name, model, disk) ?? [ONE], name);
        }
      }),
      { numRuns: 60, interruptAfterTimeLimit: 15_000 },
    );
  });

  it("for many ranks holds what one rank does, split by heads, rows and columns or by whole experts", () => {
    fc.assert(
      fc.property(moeCases(1, { most: 6, ranks: [2, 3, 4] }), (model) => {
        const checkpoint = moeCheckpoint(model);
        const asked = { scheme: "none", dtype: "auto" } as const;
        const one = heldBy(checkpoint, { ...asked, ranks: 1, expertParallel: false });
        const many = heldBy(checkpoint, { ...asked, ...model });
        checkJoined(model, many.held, one.held[0] ?? new Map());
      }),
      { numRuns: 60, interruptAfterTimeLimit: 15_000 },
    );
  });
});

describe("experts made up to multiples of rows and columns", () => {
  it("are those of the checkpoint with zeros below gate, up and down and to their right, on every rank", () => {
    const many = moeCases(1, { most: 6, ranks: [1, 2, 3] }).filter(({ fields }) => fields.model_type !== "phi3");
    fc.assert(
      fc.property(many, fc.integer({ min: 1, max: 5 }), (model, padTo) => {
        const checkpoint = moeCheckpoint(model);
        const request = { ...model, scheme: "none", dtype: "auto" } as const;
        const plain = heldBy(checkpoint, request).held;
        const madeUp = heldBy(checkpoint, request, (plan) => makeUpExperts(plan, padTo)).held;
        for (const [rank, tensors] of madeUp.entries()) {
          for (const [name, matrices] of tensors) {
            const parts = /experts\.w13_weight$/.test(name) ? 2 : 1;
            const unpadded = plain[rank]?.get(name) ?? [];
            const isExpert = /experts\.w(13|2)_weight$/.test(name);
            checkSame(matrices, isExpert ? unpadded.map((one) => padded(one, parts, padTo)) : unpadded, name);
          }
        }
      }),
      { numRuns: 40, interruptAfterTimeLimit: 15_000 },
    );
  });
});

/** A matrix of so many parts, one below the other, each with zeros below it and to its right. */
function padded(matrix: Matrix, parts: number, padTo: number): Matrix {
  const partRows = matrix.rows / parts;
  const zeros = (rows: number, cols: number): Matrix => {
    return { ...matrix, rows, cols, bytes: new Uint8Array(rows * cols * matrix.elementBytes) };
  };
  const missing = (size: number) => Math.ceil(size / padTo) * padTo - size;
  const wide = besideEachOther([matrix, zeros(matrix.rows, missing(matrix.cols))]);
  const stacked = Array.from({ length: parts }, (_, part) => [
    rowsFrom(wide, part * partRows, partRows),
    zeros(missing(partRows), wide.cols),
  ]);
  return stackRows(stacked.flat());
}

/** An attention scale that the checkpoint does not give. */
const ONE: Matrix = { rows: 1, cols: 1, elementBytes: 4, bytes: encoded(1, DTYPES.F32.code) };

function headsOf(name: string, { fields }: MoeCase, disk: (name: string) => Matrix): Matrix[] {
  const prefix = name.slice(0, name.indexOf("mla_attn."));
  const whole = disk(`${prefix}kv_b_proj.weight`);
  const [plain, value] = [Number(fields.qk_nope_head_dim), Number(fields.v_head_dim)];
  return Array.from({ length: fields.num_attention_heads }, (_, head) => {
    const first = head * (plain + value);
    return name.endsWith("W_UK_T") ? rowsFrom(whole, first, plain) : transpose(rowsFrom(whole, first + plain, value));
  });
}

const storedCases = fc.tuple(
  moeCases(128, { most: 1, ranks: [1, 2] }).filter(
    ({ form, fields }) => form !== "transposed" && expertsOf(fields) < 4 && fields.num_hidden_layers === 1,
  ),
  fc.constantFrom<ScaleKind>("block", "channel", "tensor"),
);

describe("codes as they are stored", () => {
  it("are on one rank those of the checkpoint, fused, and on many together those of one, and so are their scales", () => {
    fc.assert(
      fc.property(storedCases, ([model, kind]) => {
        const checkpoint = quantizedOnDisk(model, kind);
        const asked = { scheme: "as-stored", dtype: "auto" } as const;
        const one = heldBy(checkpoint, { ...asked, ranks: 1, expertParallel: false }).held[0] ?? new Map();
        const many = heldBy(checkpoint, { ...asked, ...model }).held;
        checkJoined(model, many, one);
        const disk = diskOf(checkpoint);
        for (const [name, matrices] of one) {
          const codes = /embed_tokens|lm_head/.test(name) ? null : fused(name, model, disk);
          if (codes !== null) checkSame(matrices, codes, name);
        }
      }),
      { numRuns: 12, interruptAfterTimeLimit: 15_000 },
    );
  }, 120_000);

  it("times their scales are the values that they are made into again, whatever the ranks", () => {
    fc.assert(
      fc.property(storedCases, ([model, kind]) => {
        const checkpoint = quantizedOnDisk(model, kind);
        const kept = heldBy(checkpoint, { ...model, scheme: "as-stored", dtype: "auto" });
        const made = heldBy(checkpoint, { ...model, scheme: "none", dtype: "bfloat16" });
        for (const [rank, held] of kept.held.entries()) {
          for (const [name, matrices] of made.held[rank] ?? new Map<string, Matrix[]>()) {
            const codes = held.get(name) ?? [];
            const scales = held.get(`${name}_scale_inv`) ?? held.get(`${name}_scale`);
            const expected =
              scales === undefined ? codes : codes.map((matrix, at) => dequantized(matrix, scaleOf(scales, at)));
            checkSame(matrices, expected, name);
          }
        }
      }),
      { numRuns: 8, interruptAfterTimeLimit: 15_000 },
    );
  }, 120_000);
});

/** That of one matrix; one scale an expert is a vector of them. */
function scaleOf(scales: Matrix[], matrix: number): Matrix {
  const [only] = scales;
  if (only === undefined) throw new Error("no scales");
  if (scales.length > 1 || only.cols > 1 || matrix === 0) return scales[matrix] ?? only;
  return rowsFrom(only, matrix, 1);
}

function dequantized({ rows, cols, bytes }: Matrix, scales: Matrix): Matrix {
  const out = new Uint8Array(rows * cols * 2);
  for (let row = 0; row < rows; row++) {
    for (let col = 0; col < cols; col++) {
      const scaleRow = scales.rows === rows ? row : Math.min(Math.floor(row / 128), scales.rows - 1);
      const scaleCol = scales.cols === 1 ? 0 : Math.floor(col / 128);
      const scaleAt = (scaleRow * scales.cols + scaleCol) * 4;
      const scale = decoded(scales.bytes.subarray(scaleAt, scaleAt + 4), DTYPES.F32.code);
      const at = row * cols + col;
      const product = Math.fround(decoded(bytes.subarray(at, at + 1), DTYPES.F8_E4M3.code) * scale);
      out.set(encoded(product, DTYPES.BF16.code), at * 2);
    }
  }
  return { rows, cols, elementBytes: 2, bytes: out };
}
