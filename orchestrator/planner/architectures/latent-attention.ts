// Multi-head latent attention (MLA) as tensor specifications: queries and keys/values go through narrow linears, which every
// rank has whole, and wide ones, which are cut by heads. At finalize kv_b_proj is split into what decoding multiplies with.

import { readSize, readSizeOrNull } from "../../checkpoint/model-config.js";
import { attentionScales } from "./attention-scales.js";
import { type Column, columnParallel, configuredBias, norm, REPLICATE, rowParallel } from "./decoder-parts.js";
import type { Dimensions, TensorSpec } from "./family.js";

export function latentAttention(model: Dimensions, prefix: string): TensorSpec[] {
  const { config, hiddenSize, headCount } = model;
  const attention = `${prefix}self_attn.`;
  const rank = readSize(config, "kv_lora_rank");
  const plainSize = readSize(config, "qk_nope_head_dim");
  const rotarySize = readSize(config, "qk_rope_head_dim");
  const valueSize = readSize(config, "v_head_dim");
  const heads = { count: headCount, field: "num_attention_heads" };
  const bias = configuredBias(model) === "all";
  const byHeads = (name: string, headRows: number, cols: number): TensorSpec[] =>
    columnParallel(
      `${attention}${name}`,
      [{ name: `${attention}${name}`, rows: headCount * headRows, rule: { kind: "rows" }, units: heads }],
      cols,
      { bias: false },
    );
  const narrow = (name: string, rows: number): Column => ({ name: `${attention}${name}`, rows, rule: REPLICATE });
  const keyValue = narrow("kv_a_proj_with_mqa", rank + rotarySize);
  const queryRank = readSizeOrNull(config, "q_lora_rank");
  const queries =
    queryRank === null
      ? [
          ...byHeads("q_proj", plainSize + rotarySize, hiddenSize),
          ...columnParallel(keyValue.name, [keyValue], hiddenSize, { bias }),
        ]
      : [
          ...columnParallel(`${attention}fused_qkv_a_proj`, [narrow("q_a_proj", queryRank), keyValue], hiddenSize, {
            bias,
          }),
          norm(`${attention}q_a_layernorm`, queryRank),
          ...byHeads("q_b_proj", plainSize + rotarySize, queryRank),
        ];
  return [
    ...queries,
    norm(`${attention}kv_a_layernorm`, rank),
    ...byHeads("kv_b_proj", plainSize + valueSize, rank),
    ...rowParallel(`${attention}o_proj`, hiddenSize, { cols: headCount * valueSize, ...heads }, bias),
    ...attentionScales(attention, "mla_attn"),
    ...absorbed(attention, { heads: headCount, plainSize, valueSize, rank }),
  ];
}

/** A head of kv_b_proj is `plainSize` rows of the keys over `valueSize` rows of the values; the latter are kept transposed. */
function absorbed(
  attention: string,
  { heads, plainSize, valueSize, rank }: { heads: number; plainSize: number; valueSize: number; rank: number },
): TensorSpec[] {
  const from = { from: `${attention}kv_b_proj.weight`, heads, headRows: plainSize + valueSize, cols: rank };
  const keys = { ...from, firstRow: 0, rows: plainSize, transposed: false };
  const values = { ...from, firstRow: plainSize, rows: valueSize, transposed: true };
  return [
    { name: `${attention}mla_attn.W_UK_T`, parts: [], quantized: false, presence: "required", derived: keys },
    { name: `${attention}mla_attn.W_UV`, parts: [], quantized: false, presence: "required", derived: values },
  ];
}
