// The pieces that decoder layers are made of, as tensor specifications: norms, linears with their biases, attention, gated
// MLP. Each kind of piece knows its fuse order and its partition rules; the families put pieces together.

import type { PartRule } from "../../contract/plan.js";
import type { Dimensions, PartSpec, TensorSpec } from "./family.js";

/** Whether the config demands a bias, or it is there where the checkpoint has one. */
type BiasPresence = "required" | "where_present";

export function biasPresence(demanded: boolean): BiasPresence {
  return demanded ? "required" : "where_present";
}

/** The layer of Llama and of all that follow it: grouped-query attention, two norms, a gated MLP. */
export function denseLayer(
  model: Dimensions,
  prefix: string,
  options: { attentionBias: BiasPresence; mlpBias: BiasPresence; headNorms: boolean },
): TensorSpec[] {
  const attention = `${prefix}self_attn.`;
  const headNorms = options.headNorms ? ["q_norm", "k_norm"] : [];
  return [
    norm(`${prefix}input_layernorm`, model.hiddenSize),
    ...fusedQkv(attention, model, options.attentionBias),
    ...headNorms.map((name) => norm(`${attention}${name}`, model.headSize)),
    ...attentionOutput(attention, model, options.attentionBias),
    ...attentionScales(attention, "attn"),
    norm(`${prefix}post_attention_layernorm`, model.hiddenSize),
    ...gatedMlp(`${prefix}mlp.`, model.hiddenSize, model.intermediateSize, options.mlpBias),
  ];
}

/** A norm's weight: whole on every rank. */
export function norm(name: string, size: number): TensorSpec {
  const rule: PartRule = { kind: "replicate" };
  const part: PartSpec = { names: [`${name}.weight`], shapes: [[size]], rule };
  return { name: `${name}.weight`, parts: [part], quantized: false, presence: "required" };
}

/** A table with one row a token, padded to a multiple of 64 rows whatever the tensor-parallel size. */
export function vocabularyTable(name: string, model: Dimensions): TensorSpec {
  const paddedRows = Math.ceil(model.vocabularySize / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE;
  const part: PartSpec = {
    names: [`${name}.weight`],
    shapes: [[model.vocabularySize, model.hiddenSize]],
    rule: { kind: "vocabulary", paddedRows },
    units: { count: paddedRows, field: `vocab_size ${model.vocabularySize} padded` },
  };
  return { name: `${name}.weight`, parts: [part], quantized: false, presence: "required" };
}

/** One of the linears that a column-parallel linear is fused from. */
interface Column {
  name: string;
  rows: number;
  rule: PartRule;
  units: { count: number; field: string };
}

/** A column-parallel linear: its parts are cut by rows, each alone, and stacked; its bias likewise. */
function columnParallel(name: string, columns: readonly Column[], cols: number, bias: BiasPresence): TensorSpec[] {
  const parts = (field: "weight" | "bias"): PartSpec[] =>
    columns.map(({ name, rows, rule, units }) => ({
      names: [`${name}.${field}`],
      shapes: [field === "weight" ? [rows, cols] : [rows]],
      rule,
      units,
    }));
  return [
    { name: `${name}.weight`, parts: parts("weight"), quantized: true, presence: "required" },
    { name: `${name}.bias`, parts: parts("bias"), quantized: false, presence: bias },
  ];
}

/** A row-parallel linear: cut by columns; its bias is whole on every rank, whose engine adds it on one. */
function rowParallel(
  name: string,
  rows: number,
  { cols, ...units }: { cols: number; count: number; field: string },
  bias: BiasPresence,
): TensorSpec[] {
  const weight: PartSpec = { names: [`${name}.weight`], shapes: [[rows, cols]], rule: { kind: "columns" }, units };
  const whole: PartSpec = { names: [`${name}.bias`], shapes: [[rows]], rule: { kind: "replicate" } };
  return [
    { name: `${name}.weight`, parts: [weight], quantized: true, presence: "required" },
    { name: `${name}.bias`, parts: [whole], quantized: false, presence: bias },
  ];
}

/** q, k and v fused, cut by heads. */
function fusedQkv(prefix: string, model: Dimensions, bias: BiasPresence): TensorSpec[] {
  const heads = { count: model.headCount, field: "num_attention_heads" };
  const keyValueHeads = { count: model.keyValueHeadCount, field: "num_key_value_heads" };
  const queryRows = model.headCount * model.headSize;
  const keyValueRows = model.keyValueHeadCount * model.headSize;
  const keyValueRule: PartRule = { kind: "kv_heads", heads: model.keyValueHeadCount };
  return columnParallel(
    `${prefix}qkv_proj`,
    [
      { name: `${prefix}q_proj`, rows: queryRows, rule: { kind: "rows" }, units: heads },
      { name: `${prefix}k_proj`, rows: keyValueRows, rule: keyValueRule, units: keyValueHeads },
      { name: `${prefix}v_proj`, rows: keyValueRows, rule: keyValueRule, units: keyValueHeads },
    ],
    model.hiddenSize,
    bias,
  );
}

function attentionOutput(prefix: string, model: Dimensions, bias: BiasPresence): TensorSpec[] {
  const cols = model.headCount * model.headSize;
  const heads = { count: model.headCount, field: "num_attention_heads" };
  return rowParallel(`${prefix}o_proj`, model.hiddenSize, { cols, ...heads }, bias);
}

/** gate and up fused, and down. */
function gatedMlp(prefix: string, hiddenSize: number, intermediateSize: number, bias: BiasPresence) {
  const units = { count: intermediateSize, field: "intermediate_size" };
  const column = { rows: intermediateSize, rule: { kind: "rows" } as const, units };
  return [
    ...columnParallel(
      `${prefix}gate_up_proj`,
      [
        { name: `${prefix}gate_proj`, ...column },
        { name: `${prefix}up_proj`, ...column },
      ],
      hiddenSize,
      bias,
    ),
    ...rowParallel(`${prefix}down_proj`, hiddenSize, { cols: intermediateSize, ...units }, bias),
  ];
}

/** The scalars of the key/value cache and of attention, under every name they have been written with. */
function attentionScales(attention: string, kernelModule: string): TensorSpec[] {
  const names: Record<string, string[]> = {
    q_scale: ["q_scale", "attn.q_scale"],
    k_scale: ["k_scale", "attn.k_scale", "k_proj.k_scale", "kv_scale"],
    v_scale: ["v_scale", "attn.v_scale", "v_proj.v_scale", "kv_scale"],
    prob_scale: ["attn.prob_scale"],
  };
  return Object.entries(names).map(([scale, onDisk]) => ({
    name: `${attention}${kernelModule}.${scale}`,
    parts: [{ names: onDisk.map((name) => attention + name), shapes: [[], [1]], rule: { kind: "replicate" } }],
    quantized: false,
    presence: "attention_scale",
  }));
}

const VOCABULARY_MULTIPLE = 64;
