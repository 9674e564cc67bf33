// The headers, index and config.json of DeepSeek-V3 as its official FP8 checkpoint has them: every name, dtype and shape, and files
// of the right size that hold nothing. 92,000 tensors, 688 GB of which no byte is on disk.

import { mkdir, open, writeFile } from "node:fs/promises";
import { join } from "node:path";

const FILES = 163;
const LAYERS = 61;
const DENSE_LAYERS = 3;
const EXPERTS = 256;
const BLOCK = 128;
const HIDDEN = 7168;
const INTERMEDIATE = 18432;
const EXPERT_INTERMEDIATE = 2048;
const HEADS = 128;
const QUERY_RANK = 1536;
const KEY_VALUE_RANK = 512;
const [NOPE, ROPE, VALUE] = [128, 64, 128];
const VOCABULARY = 129280;

const CONFIG = {
  architectures: ["DeepseekV3ForCausalLM"],
  model_type: "deepseek_v3",
  attention_bias: false,
  first_k_dense_replace: DENSE_LAYERS,
  hidden_size: HIDDEN,
  intermediate_size: INTERMEDIATE,
  kv_lora_rank: KEY_VALUE_RANK,
  moe_intermediate_size: EXPERT_INTERMEDIATE,
  moe_layer_freq: 1,
  n_group: 8,
  n_routed_experts: EXPERTS,
  n_shared_experts: 1,
  num_attention_heads: HEADS,
  num_experts_per_tok: 8,
  num_hidden_layers: LAYERS,
  num_key_value_heads: HEADS,
  num_nextn_predict_layers: 1,
  q_lora_rank: QUERY_RANK,
  qk_nope_head_dim: NOPE,
  qk_rope_head_dim: ROPE,
  quantization_config: {
    activation_scheme: "dynamic",
    fmt: "e4m3",
    quant_method: "fp8",
    weight_block_size: [BLOCK, BLOCK],
  },
  tie_word_embeddings: false,
  topk_method: "noaux_tc",
  torch_dtype: "bfloat16",
  v_head_dim: VALUE,
  vocab_size: VOCABULARY,
};

interface NamedTensor {
  name: string;
  dtype: keyof typeof ELEMENT_BYTES;
  shape: number[];
}

const ELEMENT_BYTES = { BF16: 2, F32: 4, F8_E4M3: 1 };

/** How many tensors the checkpoint has. */
export async function writeDeepSeekHeaders(directory: string): Promise<number> {
  await mkdir(directory, { recursive: true });
  const tensors = [...allTensors()];
  const totalBytes = tensors.reduce((sum, tensor) => sum + bytesOf(tensor), 0);
  const shares = Array.from({ length: FILES }, (): NamedTensor[] => []);
  let before = 0;
  for (const tensor of tensors) {
    shares[Math.floor((before / totalBytes) * FILES)]?.push(tensor);
    before += bytesOf(tensor);
  }
  const weightMap: Record<string, string> = {};
  for (const [index, share] of shares.entries()) {
    const name = `model-${padded(index + 1)}-of-${padded(FILES)}.safetensors`;
    for (const tensor of share) weightMap[tensor.name] = name;
    await writeHollow(join(directory, name), share);
  }
  const index = { metadata: {}, weight_map: weightMap };
  await writeFile(join(directory, "model.safetensors.index.json"), JSON.stringify(index));
  await writeFile(join(directory, "config.json"), JSON.stringify(CONFIG));
  return tensors.length;
}

function* allTensors(): Generator<NamedTensor> {
  yield plain("model.embed_tokens.weight", VOCABULARY, HIDDEN);
  for (let layer = 0; layer < LAYERS; layer++) yield* decoderLayer(`model.layers.${layer}.`, layer < DENSE_LAYERS);
  yield plain("model.norm.weight", HIDDEN);
  yield plain("lm_head.weight", VOCABULARY, HIDDEN);
  yield* predictionLayer(`model.layers.${LAYERS}.`);
}

function* decoderLayer(prefix: string, isDense: boolean): Generator<NamedTensor> {
  const attention = `${prefix}self_attn.`;
  yield plain(`${prefix}input_layernorm.weight`, HIDDEN);
  yield plain(`${prefix}post_attention_layernorm.weight`, HIDDEN);
  yield plain(`${attention}q_a_layernorm.weight`, QUERY_RANK);
  yield plain(`${attention}kv_a_layernorm.weight`, KEY_VALUE_RANK);
  yield* quantized(`${attention}q_a_proj`, QUERY_RANK, HIDDEN);
  yield* quantized(`${attention}q_b_proj`, HEADS * (NOPE + ROPE), QUERY_RANK);
  yield* quantized(`${attention}kv_a_proj_with_mqa`, KEY_VALUE_RANK + ROPE, HIDDEN);
  yield* quantized(`${attention}kv_b_proj`, HEADS * (NOPE + VALUE), KEY_VALUE_RANK);
  yield* quantized(`${attention}o_proj`, HIDDEN, HEADS * VALUE);
  if (isDense) return yield* perceptron(`${prefix}mlp.`, INTERMEDIATE);
  yield plain(`${prefix}mlp.gate.weight`, EXPERTS, HIDDEN);
  yield { name: `${prefix}mlp.gate.e_score_correction_bias`, dtype: "F32", shape: [EXPERTS] };
  yield* perceptron(`${prefix}mlp.shared_experts.`, EXPERT_INTERMEDIATE);
  for (let expert = 0; expert < EXPERTS; expert++)
    yield* perceptron(`${prefix}mlp.experts.${expert}.`, EXPERT_INTERMEDIATE);
}

/** Multi-token prediction: what no engine loads unless it is told to. */
function* predictionLayer(prefix: string): Generator<NamedTensor> {
  yield* decoderLayer(prefix, false);
  yield plain(`${prefix}embed_tokens.weight`, VOCABULARY, HIDDEN);
  yield plain(`${prefix}enorm.weight`, HIDDEN);
  yield plain(`${prefix}hnorm.weight`, HIDDEN);
  yield plain(`${prefix}eh_proj.weight`, HIDDEN, 2 * HIDDEN);
  yield plain(`${prefix}shared_head.norm.weight`, HIDDEN);
  yield plain(`${prefix}shared_head.head.weight`, VOCABULARY, HIDDEN);
}

function* perceptron(prefix: string, intermediate: number): Generator<NamedTensor> {
  yield* quantized(`${prefix}gate_proj`, intermediate, HIDDEN);
  yield* quantized(`${prefix}up_proj`, intermediate, HIDDEN);
  yield* quantized(`${prefix}down_proj`, HIDDEN, intermediate);
}

function plain(name: string, ...shape: number[]): NamedTensor {
  return { name, dtype: "BF16", shape };
}

function* quantized(module: string, rows: number, cols: number): Generator<NamedTensor> {
  yield { name: `${module}.weight`, dtype: "F8_E4M3", shape: [rows, cols] };
  const blocks = [rows, cols].map((size) => Math.ceil(size / BLOCK));
  yield { name: `${module}.weight_scale_inv`, dtype: "F32", shape: blocks };
}

/** The header, and a file of the size that it calls for. */
async function writeHollow(path: string, tensors: readonly NamedTensor[]): Promise<void> {
  let end = 0;
  const entries = tensors.map((tensor) => {
    const { name, dtype, shape } = tensor;
    const begin = end;
    end += bytesOf(tensor);
    return [name, { dtype, shape, data_offsets: [begin, end] }];
  });
  const json = Buffer.from(JSON.stringify(Object.fromEntries(entries)));
  const lengthBytes = Buffer.alloc(8);
  lengthBytes.writeBigUInt64LE(BigInt(json.byteLength));
  const file = await open(path, "w");
  try {
    await file.writev([lengthBytes, json]);
    await file.truncate(lengthBytes.byteLength + json.byteLength + end);
  } finally {
    await file.close();
  }
}

function bytesOf({ dtype, shape }: NamedTensor): number {
  return shape.reduce((product, size) => product * size, ELEMENT_BYTES[dtype]);
}

function padded(index: number): string {
  return String(index).padStart(5, "0");
}
