// The pieces that decoder layers are made of, as tensor specifications: norms, linears with their biases, attention, gated
// MLP. Each kind of piece knows its fuse order and its partition rules; the families put pieces together.

import { readFlag, readSize } from "../../checkpoint/model-config.js";
import type { PartRule } from "../../contract/plan.js";
import { attentionScales } from "./attention-scales.js";
import type { Dimensions, PartSource, PartSpec, TensorSpec } from "./family.js";

/** Which linears of attention have biases: none, q, k and v, or the output projection too. */
export type AttentionBias = "none" | "qkv" | "all";

/** Where the config decides: `attention_bias` is for all of them. */
export function configuredBias({ config }: Dimensions): AttentionBias {
  return readFlag(config, "attention_bias", false) ? "all" : "none";
}

export interface AttentionOptions {
  bias: AttentionBias;
  /** A norm over each query head and each key head. */
  headNorms?: boolean;
  /** q, k and v are one tensor on disk, stacked whole. */
  fusedOnDisk?: boolean;
}

/** The layer of Llama and of all that follow it: grouped-query attention, two norms, a gated MLP. */
export function denseLayer(
  model: Dimensions,
  prefix: string,
  options: { attention: AttentionOptions; mlpBias: boolean; fusedOnDisk?: boolean },
): TensorSpec[] {
  const mlp = { prefix: `${prefix}mlp.`, ...intermediateSize(model), bias: options.mlpBias };
  return [
    norm(`${prefix}input_layernorm`, model.hiddenSize),
    ...groupedQueryAttention(model, prefix, options.attention),
    norm(`${prefix}post_attention_layernorm`, model.hiddenSize),
    ...gatedMlp(model, { ...mlp, fusedOnDisk: options.fusedOnDisk }),
  ];
}

/** q, k and v fused and cut by heads, the output projection, the scalars of the key/value cache. */
export function groupedQueryAttention(model: Dimensions, prefix: string, options: AttentionOptions): TensorSpec[] {
  const { config, hiddenSize, headCount } = model;
  const attention = `${prefix}self_attn.`;
  const headSize = readSize(config, "head_dim", hiddenSize / headCount);
  const keyValueHeadCount = readSize(config, "num_key_value_heads", headCount);
  const heads = { count: headCount, field: "num_attention_heads" };
  const keyValue: Omit<Column, "name"> = {
    rows: keyValueHeadCount * headSize,
    rule: { kind: "kv_heads", heads: keyValueHeadCount },
    units: { count: keyValueHeadCount, field: "num_key_value_heads" },
  };
  const headNorms = options.headNorms === true ? ["q_norm", "k_norm"] : [];
  return [
    ...columnParallel(
      `${attention}qkv_proj`,
      [
        { name: `${attention}q_proj`, rows: headCount * headSize, rule: { kind: "rows" }, units: heads },
        { name: `${attention}k_proj`, ...keyValue },
        { name: `${attention}v_proj`, ...keyValue },
      ],
      hiddenSize,
      { ...options, bias: options.bias !== "none" },
    ),
    ...headNorms.map((name) => norm(`${attention}${name}`, headSize)),
    ...rowParallel(`${attention}o_proj`, hiddenSize, { cols: headCount * headSize, ...heads }, options.bias === "all"),
    ...attentionScales(attention, "attn"),
  ];
}

/** gate and up fused, and down. `size` is the number of rows of gate and of up; `field` is where the config has it. */
export function gatedMlp(
  model: Dimensions,
  mlp: { prefix: string; size: number; field: string; bias: boolean; fusedOnDisk?: boolean | undefined },
): TensorSpec[] {
  const { prefix, size, field, bias, fusedOnDisk = false } = mlp;
  const units = { count: size, field };
  const column = { rows: size, rule: { kind: "rows" } as const, units };
  return [
    ...columnParallel(
      `${prefix}gate_up_proj`,
      [
        { name: `${prefix}gate_proj`, ...column },
        { name: `${prefix}up_proj`, ...column },
      ],
      model.hiddenSize,
      { bias, fusedOnDisk },
    ),
    ...rowParallel(`${prefix}down_proj`, model.hiddenSize, { cols: size, ...units }, bias),
  ];
}

/** The size of a layer's one MLP. */
export function intermediateSize({ config }: Dimensions): { size: number; field: string } {
  return { size: readSize(config, "intermediate_size"), field: "intermediate_size" };
}

/** A part that the checkpoint gives as a tensor of its own, a matrix. */
export function matrix(name: string, rows: number, cols: number, rule: PartRule, units?: PartSpec["units"]): PartSpec {
  return { sources: [{ name, shapes: [[rows, cols]] }], rows, cols, rule, ...(units && { units }) };
}

/** A part that the checkpoint gives as a tensor of its own, a vector. */
export function vector(name: string, rows: number, rule: PartRule, units?: PartSpec["units"]): PartSpec {
  return { sources: [{ name, shapes: [[rows]] }], rows, cols: 1, rule, ...(units && { units }) };
}

/** A norm's weight: whole on every rank. */
export function norm(name: string, size: number): TensorSpec {
  const part = vector(`${name}.weight`, size, REPLICATE);
  return { name: `${name}.weight`, parts: [part], quantized: false, presence: "required" };
}

/** A table with one row a token, padded to a multiple of 64 rows whatever the tensor-parallel size. */
export function vocabularyTable(name: string, model: Dimensions): TensorSpec {
  const paddedRows = Math.ceil(model.vocabularySize / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE;
  const rule: PartRule = { kind: "vocabulary", paddedRows };
  const units = { count: paddedRows, field: `vocab_size ${model.vocabularySize} padded` };
  const part = matrix(`${name}.weight`, model.vocabularySize, model.hiddenSize, rule, units);
  return { name: `${name}.weight`, parts: [part], quantized: false, presence: "required" };
}

/** One of the linears that another is fused from. */
export interface Column {
  name: string;
  rows: number;
  rule: PartRule;
  units?: { count: number; field: string };
}

/** A linear, whose parts are cut by rows, each alone, and stacked; its bias, if it has one, likewise. A part may be all that there is. */
export function columnParallel(
  name: string,
  columns: readonly Column[],
  cols: number,
  { bias, fusedOnDisk }: { bias: boolean; fusedOnDisk?: boolean },
): TensorSpec[] {
  const weights = columns.map((part) => matrix(`${part.name}.weight`, part.rows, cols, part.rule, part.units));
  const biases = columns.map((part) => vector(`${part.name}.bias`, part.rows, part.rule, part.units));
  const onDisk = fusedOnDisk === true ? windowsOf : (_: string, parts: PartSpec[]) => parts;
  return [
    { name: `${name}.weight`, parts: onDisk(`${name}.weight`, weights), quantized: true, presence: "required" },
    ...(bias ? [biasOf(name, onDisk(`${name}.bias`, biases))] : []),
  ];
}

function biasOf(name: string, parts: readonly PartSpec[]): TensorSpec {
  return { name: `${name}.bias`, parts, quantized: false, presence: "required" };
}

/** The same parts, as windows of one tensor in which they are stacked whole: its rows are split before any is cut. */
function windowsOf(name: string, parts: readonly PartSpec[]): PartSpec[] {
  const rows = parts.reduce((sum, part) => sum + part.rows, 0);
  let first = 0;
  return parts.map((part) => {
    const shape = part.sources[0]?.shapes[0]?.length === 1 ? [rows] : [rows, part.cols];
    const source: PartSource = { name, shapes: [shape], view: { first, rowStride: part.cols, colStride: 1 } };
    first += part.rows * part.cols;
    return { ...part, sources: [source] };
  });
}

/** A row-parallel linear: cut by columns; its bias is whole on every rank, whose engine adds it on one. */
export function rowParallel(
  name: string,
  rows: number,
  { cols, ...units }: { cols: number; count: number; field: string },
  bias: boolean,
): TensorSpec[] {
  const weight = matrix(`${name}.weight`, rows, cols, { kind: "columns" }, units);
  return [
    { name: `${name}.weight`, parts: [weight], quantized: true, presence: "required" },
    ...(bias ? [biasOf(name, [vector(`${name}.bias`, rows, REPLICATE)])] : []),
  ];
}

export const REPLICATE: PartRule = { kind: "replicate" };
const VOCABULARY_MULTIPLE = 64;
