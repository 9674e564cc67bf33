// Random models with experts, latent attention or tensors that are fused on disk: their configs, the names and shapes that a
// checkpoint of each has, and what makes the ranks' kernel tensors those of one rank again. Written apart from the planner.

import fc from "fast-check";
import { DTYPES, elementCount, type FormatDType } from "../../orchestrator/contract/dtype.js";
import { encoded } from "../program/interpret-program.js";
import { type ConfigFields, type Shapes, type Synthetic, shapesOf, synthesize } from "./synthetic-checkpoint.js";

/** How a checkpoint may have an expert's matrices. */
export type ExpertForm = "each" | "stacked" | "transposed" | "apart";

export interface MoeCase {
  fields: ConfigFields;
  ranks: number;
  expertParallel: boolean;
  form: ExpertForm;
  fileCount: number;
}

const KINDS = ["qwen3_moe", "deepseek_v3", "deepseek_v2", "phi3"] as const;

const ARCHITECTURES = {
  qwen3_moe: "Qwen3MoeForCausalLM",
  deepseek_v3: "DeepseekV3ForCausalLM",
  deepseek_v2: "DeepseekV2ForCausalLM",
  phi3: "Phi3ForCausalLM",
} as const;

/** `unit`: sizes are multiples of it, as blocks of scales demand. */
export function moeCases(unit: number, sizes: { most: number; ranks: number[] }): fc.Arbitrary<MoeCase> {
  const size = fc.integer({ min: 1, max: sizes.most }).map((times) => times * unit);
  return fc.constantFrom(...sizes.ranks).chain((ranks) =>
    fc
      .record({
        kind: fc.constantFrom(...KINDS),
        expertParallel: fc.boolean(),
        form: fc.constantFrom<ExpertForm>("each", "stacked", "transposed", "apart"),
        fileCount: fc.integer({ min: 1, max: 3 }),
        hidden: size,
        wide: size,
        expertWide: size,
        experts: fc.integer({ min: 1, max: 7 }),
        shared: fc.integer({ min: 0, max: 2 }),
        heads: fc.integer({ min: 1, max: 2 }),
        keyValueHeads: fc.integer({ min: 1, max: 2 }),
        headSize: size,
        queryRank: fc.option(size),
        keyValueRank: size,
        plain: size,
        rotary: fc.integer({ min: 1, max: 3 }),
        value: size,
        layers: fc.integer({ min: 1, max: 2 }),
        denseLayers: fc.integer({ min: 0, max: 1 }),
      })
      .map((model): MoeCase => {
        const { kind, expertParallel, form, fileCount } = model;
        const isLatent = kind === "deepseek_v2" || kind === "deepseek_v3";
        return {
          ranks,
          expertParallel,
          fileCount,
          // DeepSeek's are not stacked by anybody, but nothing forbids it.
          form,
          fields: {
            architectures: [ARCHITECTURES[kind]],
            model_type: kind,
            hidden_size: model.hidden,
            intermediate_size: model.wide * ranks,
            // Of whole experts no size need divide.
            moe_intermediate_size: expertParallel ? model.expertWide : model.expertWide * ranks,
            n_shared_experts: isLatent ? model.shared * ranks : 0,
            ...(isLatent ? { n_routed_experts: model.experts } : { num_experts: model.experts }),
            first_k_dense_replace: model.denseLayers,
            mlp_only_layers: model.denseLayers === 1 ? [0] : [],
            num_attention_heads: model.heads * ranks,
            num_key_value_heads: isLatent ? model.heads * ranks : model.keyValueHeads * ranks,
            head_dim: model.headSize,
            q_lora_rank: model.queryRank,
            kv_lora_rank: model.keyValueRank,
            qk_nope_head_dim: model.plain,
            qk_rope_head_dim: model.rotary * unit,
            v_head_dim: model.value,
            num_hidden_layers: model.layers,
            vocab_size: 64 * ranks,
          },
        };
      }),
  );
}

/** DeepSeek with two layers, the second with three experts and a shared one, in sizes that blocks of scales fit. */
export function deepseekCase(form: ExpertForm): MoeCase {
  return {
    ranks: 2,
    expertParallel: false,
    form,
    fileCount: 3,
    fields: {
      architectures: ["DeepseekV3ForCausalLM"],
      model_type: "deepseek_v3",
      hidden_size: 256,
      intermediate_size: 256,
      moe_intermediate_size: 512,
      n_shared_experts: 1,
      n_routed_experts: 3,
      first_k_dense_replace: 1,
      num_attention_heads: 4,
      q_lora_rank: 128,
      kv_lora_rank: 128,
      qk_nope_head_dim: 64,
      qk_rope_head_dim: 64,
      v_head_dim: 64,
      num_hidden_layers: 2,
      vocab_size: 128,
    },
  };
}

function sizeOf(fields: ConfigFields, name: string): number {
  const value = fields[name];
  if (typeof value !== "number") throw new Error(`no ${name}`);
  return value;
}

export function isLatent({ model_type }: ConfigFields): boolean {
  return model_type.startsWith("deepseek");
}

export function expertsOf({ n_routed_experts, num_experts }: ConfigFields): number {
  return Number(n_routed_experts ?? num_experts);
}

function isSparse(fields: ConfigFields, layer: number): boolean {
  return fields.model_type !== "phi3" && layer >= sizeOf(fields, "first_k_dense_replace");
}

export function moeShapes({ fields, form }: MoeCase): Shapes {
  const shapes = shapesOf({ ...fields, model_type: fields.model_type === "qwen3_moe" ? "qwen3" : "llama" });
  const drop = (prefix: string) => {
    for (const name of Object.keys(shapes)) if (name.startsWith(prefix)) delete shapes[name];
  };
  for (let layer = 0; layer < fields.num_hidden_layers; layer++) {
    const prefix = `model.layers.${layer}.`;
    if (isLatent(fields)) {
      drop(`${prefix}self_attn.`);
      Object.assign(shapes, latentShapes(fields, `${prefix}self_attn.`));
    }
    if (fields.model_type === "phi3") {
      for (const part of ["q_proj", "k_proj", "v_proj"]) drop(`${prefix}self_attn.${part}`);
      for (const part of ["gate_proj", "up_proj"]) drop(`${prefix}mlp.${part}`);
      const rows = (fields.num_attention_heads + 2 * (fields.num_key_value_heads ?? 0)) * (fields.head_dim ?? 0);
      shapes[`${prefix}self_attn.qkv_proj.weight`] = [rows, fields.hidden_size];
      shapes[`${prefix}mlp.gate_up_proj.weight`] = [2 * fields.intermediate_size, fields.hidden_size];
    }
    if (isSparse(fields, layer)) {
      drop(`${prefix}mlp.`);
      Object.assign(shapes, expertShapes(fields, `${prefix}mlp.`, form));
    }
  }
  return shapes;
}

/** The correction bias is F32 on disk, all else BF16. */
export function moeCheckpoint(model: MoeCase): Synthetic {
  const shapes = moeShapes(model);
  const biases = Object.keys(shapes).filter((name) => name.endsWith("e_score_correction_bias"));
  const dtypes = Object.fromEntries(biases.map((name) => [name, "F32"] as const));
  return synthesize(model.fields, shapes, { fileCount: model.fileCount, dtypes });
}

function latentShapes(fields: ConfigFields, prefix: string): Shapes {
  const [plain, rotary, value] = ["qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"].map((name) =>
    sizeOf(fields, name),
  ) as [number, number, number];
  const { hidden_size: hidden, num_attention_heads: heads } = fields;
  const keyValueRank = sizeOf(fields, "kv_lora_rank");
  const shapes: Shapes = {
    [`${prefix}kv_a_proj_with_mqa.weight`]: [keyValueRank + rotary, hidden],
    [`${prefix}kv_a_layernorm.weight`]: [keyValueRank],
    [`${prefix}kv_b_proj.weight`]: [heads * (plain + value), keyValueRank],
    [`${prefix}o_proj.weight`]: [hidden, heads * value],
  };
  if (fields.q_lora_rank === null) {
    shapes[`${prefix}q_proj.weight`] = [heads * (plain + rotary), hidden];
  } else {
    const queryRank = sizeOf(fields, "q_lora_rank");
    shapes[`${prefix}q_a_proj.weight`] = [queryRank, hidden];
    shapes[`${prefix}q_a_layernorm.weight`] = [queryRank];
    shapes[`${prefix}q_b_proj.weight`] = [heads * (plain + rotary), queryRank];
  }
  return shapes;
}

function expertShapes(fields: ConfigFields, prefix: string, form: ExpertForm): Shapes {
  const hidden = fields.hidden_size;
  const wide = sizeOf(fields, "moe_intermediate_size");
  const count = expertsOf(fields);
  const shapes: Shapes = { [`${prefix}gate.weight`]: [count, hidden] };
  if (fields.model_type === "deepseek_v3") shapes[`${prefix}gate.e_score_correction_bias`] = [count];
  const shared = sizeOf(fields, "n_shared_experts") * wide;
  if (shared > 0) {
    shapes[`${prefix}shared_experts.gate_proj.weight`] = [shared, hidden];
    shapes[`${prefix}shared_experts.up_proj.weight`] = [shared, hidden];
    shapes[`${prefix}shared_experts.down_proj.weight`] = [hidden, shared];
  }
  if (form === "each") {
    for (let expert = 0; expert < count; expert++) {
      shapes[`${prefix}experts.${expert}.gate_proj.weight`] = [wide, hidden];
      shapes[`${prefix}experts.${expert}.up_proj.weight`] = [wide, hidden];
      shapes[`${prefix}experts.${expert}.down_proj.weight`] = [hidden, wide];
    }
  } else if (form === "apart") {
    shapes[`${prefix}experts.gate_proj`] = [count, wide, hidden];
    shapes[`${prefix}experts.up_proj`] = [count, wide, hidden];
    shapes[`${prefix}experts.down_proj`] = [count, hidden, wide];
  } else {
    const isTransposed = form === "transposed";
    shapes[`${prefix}experts.gate_up_proj`] = isTransposed ? [count, hidden, 2 * wide] : [count, 2 * wide, hidden];
    shapes[`${prefix}experts.down_proj`] = isTransposed ? [count, wide, hidden] : [count, hidden, wide];
  }
  return shapes;
}

/** A matrix of elements of a few bytes each, and the operations that fusing and sharding are made of. */
export interface Matrix {
  rows: number;
  cols: number;
  elementBytes: number;
  bytes: Uint8Array;
  /** One dimension, or none. */
  isVector?: boolean;
}

export function stackRows(parts: readonly Matrix[]): Matrix {
  const { cols = 1, elementBytes = 1 } = parts[0] ?? {};
  const rows = parts.reduce((sum, part) => sum + part.rows, 0);
  return { rows, cols, elementBytes, bytes: Buffer.concat(parts.map(({ bytes }) => bytes)) };
}

export function rowsFrom(matrix: Matrix, first: number, rows: number): Matrix {
  const rowBytes = matrix.cols * matrix.elementBytes;
  return { ...matrix, rows, bytes: matrix.bytes.subarray(first * rowBytes, (first + rows) * rowBytes) };
}

export function besideEachOther(parts: readonly Matrix[]): Matrix {
  const { rows = 0, elementBytes = 1 } = parts[0] ?? {};
  const cols = parts.reduce((sum, part) => sum + part.cols, 0);
  const inOrder = Array.from({ length: rows }, (_, row) => parts.map((part) => rowsFrom(part, row, 1).bytes));
  return { rows, cols, elementBytes, bytes: Buffer.concat(inOrder.flat()) };
}

export function transpose({ rows, cols, elementBytes, bytes }: Matrix): Matrix {
  const out = new Uint8Array(bytes.byteLength);
  for (let row = 0; row < rows; row++) {
    for (let col = 0; col < cols; col++) {
      const from = (row * cols + col) * elementBytes;
      out.set(bytes.subarray(from, from + elementBytes), (col * rows + row) * elementBytes);
    }
  }
  return { rows: cols, cols: rows, elementBytes, bytes: out };
}

/** A checkpoint tensor as a matrix; of a stacked one the matrices are one below the other. */
export function diskOf({ table, files }: Synthetic) {
  return (name: string): Matrix => {
    const tensor = table.tensors.get(name);
    if (tensor === undefined) throw new Error(`the checkpoint has no ${name}`);
    const elementBytes = DTYPES[tensor.dtype as keyof typeof DTYPES].bytes;
    const bytes = elementCount(tensor.shape) * elementBytes;
    const file = files.get(table.files[tensor.file]?.path ?? "") ?? new Uint8Array();
    const [rows = 1, cols = 1] =
      tensor.shape.length === 3 ? [(tensor.shape[0] ?? 1) * (tensor.shape[1] ?? 1), tensor.shape[2]] : tensor.shape;
    return { rows, cols, elementBytes, bytes: file.subarray(tensor.offset, tensor.offset + bytes) };
  };
}

export type ScaleKind = "block" | "channel" | "tensor";

/** How scales are written that mean the same. */
export interface ScaleForm {
  dtype: "F32" | "F8_E8M0";
  /** Of a scale a row: [rows, 1], [rows] or [1, rows]. Of a scale a tensor: [] or [1]. */
  shape: "column" | "vector" | "row";
  suffix: "_scale" | "_scale_inv" | "by kind";
}

export const PLAIN_SCALES: ScaleForm = { dtype: "F32", shape: "column", suffix: "by kind" };

/** The same checkpoint with FP8 codes in its linears, and scales beside them: other than F32 ones are powers of two. */
export function quantizedOnDisk(model: MoeCase, kind: ScaleKind, form: ScaleForm = PLAIN_SCALES): Synthetic {
  const shapes = moeShapes(model);
  const scales: Shapes = {};
  const dtypes: Record<string, FormatDType> = {};
  for (const [name, shape] of Object.entries(shapes)) {
    if (name.endsWith("e_score_correction_bias")) dtypes[name] = "F32";
    if (shape.length < 2 || /embed_tokens|lm_head|mlp\.gate\.weight/.test(name)) continue;
    dtypes[name] = "F8_E4M3";
    const byKind = kind === "block" ? "_scale_inv" : "_scale";
    const scale = `${name}${form.suffix === "by kind" ? byKind : form.suffix}`;
    dtypes[scale] = form.dtype;
    scales[scale] = shapeOfScales(shape, kind, form);
  }
  const checkpoint = synthesize(model.fields, { ...shapes, ...scales }, { dtypes, fileCount: model.fileCount });
  for (const name of Object.keys(scales)) {
    const { bytes } = diskOf(checkpoint)(name);
    const { bytes: size } = DTYPES[form.dtype];
    for (let at = 0; at < bytes.length; at += size) bytes.set(scaleAt(at, kind, form), at);
  }
  return checkpoint;
}

/** One that fits all, or one of its own for each. */
function scaleAt(at: number, kind: ScaleKind, { dtype }: ScaleForm): Uint8Array {
  if (dtype === "F8_E8M0") return Uint8Array.of(kind === "tensor" ? 125 : 110 + ((at * 7) % 19));
  return encoded(kind === "tensor" ? 0.375 : 2 ** -9 * (1 + ((at * 7) % 251)), DTYPES.F32.code);
}

function shapeOfScales(shape: readonly number[], kind: ScaleKind, form: ScaleForm): number[] {
  const [rows = 1, cols = 1] = shape.slice(-2);
  const stacked = shape.slice(0, -2);
  if (kind === "tensor") return stacked.length > 0 || form.shape === "column" ? stacked : [1];
  const blocks = [Math.ceil(rows / 128), Math.ceil(cols / 128)];
  if (kind === "block") return [...stacked, ...blocks];
  const row = [...stacked, 1, rows];
  if (form.shape === "vector") return [...stacked, rows];
  // [1, rows] may be what a matrix of few rows has of blocks.
  return form.shape === "row" && !(blocks[0] === 1 && blocks[1] === rows) ? row : [...stacked, rows, 1];
}
