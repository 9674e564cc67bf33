// The scalars of attention and of its key/value cache as tensor specifications, under every name by which vLLM finds them in a
// checkpoint: those of compressed-tensors, ModelOpt, Quark and of the engine itself. The kernel tensor has one name.

import type { PartSource, TensorSpec } from "./family.js";

/** How the engine's module of attention is called in a layer. */
export type AttentionModule = "attn" | "mla_attn";

/**
 * `attention` is the prefix of the layer's attention, such as `model.layers.7.self_attn.`. These tensors alone are optional: a
 * checkpoint that was calibrated for an FP8 cache has them (Llama-3.1-8B-Instruct-FP8-KV), what it was made of has none
 * (Llama-3.1-8B-Instruct), and the config is the same.
 */
export function attentionScales(attention: string, module: AttentionModule): TensorSpec[] {
  const modules = module === "attn" ? ["attn"] : ["mla_attn", "mla_attn.mla_attn", "attn"];
  const ofModule = (scale: string) => modules.map((name) => `${name}.${scale}`);
  const keys = ["k_scale", ...ofModule("k_scale"), ...KEYS];
  const names = {
    q_scale: ["q_scale", ...ofModule("q_scale"), ...QUERIES],
    k_scale: keys,
    // A checkpoint that scales keys alone means both, as vLLM reads it: `kv_scale` says so, the other names do not.
    v_scale: ["v_scale", ...ofModule("v_scale"), ...VALUES, ...keys],
    prob_scale: [...ofModule("prob_scale"), ...PROBABILITIES],
  };
  return Object.entries(names).map(([scale, onDisk]) => {
    const sources = onDisk.map((name): PartSource => ({ name: attention + name, shapes: SCALAR }));
    return {
      name: `${attention}${module}.${scale}`,
      parts: [{ sources, rows: 1, cols: 1, rule: { kind: "replicate" } }],
      quantized: false,
      presence: "attention_scale",
    };
  });
}

/** Why a tensor of this name is skipped, in whatever layer; null: it is no zero point of attention. */
export function zeroPointReason(name: string): string | null {
  return ZERO_POINT.test(name) ? "a zero point of the key/value cache: codes of FP8 have none" : null;
}

const QUERIES = ["q_proj.output_scale", "q.scale"];
const KEYS = [
  "k_proj.k_scale",
  "qkv_proj.k_scale",
  "qkqkv_proj.k_scale",
  "k_proj.output_scale",
  "k_cache.scale",
  "kv_scale",
];
const VALUES = ["v_proj.v_scale", "qkv_proj.v_scale", "qkqkv_proj.v_scale", "v_proj.output_scale", "v_cache.scale"];
const PROBABILITIES = ["prob_output_scale"];
const ZERO_POINT = /\.self_attn\.(?:(?:mla_)?attn\.|[qkv]_proj\.|qkv_proj\.)*[qkv]_zero_point$/;
const SCALAR = [[], [1]];
