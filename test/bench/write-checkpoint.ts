// A Llama-shaped BF16 checkpoint of any size, made of nothing but its shape and a seed: the same ones give the same bytes.
// Values are finite, of either sign, between 2^-15 and 2.

import { link, mkdir, open, readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";

export interface LlamaShape {
  hidden: number;
  intermediate: number;
  heads: number;
  keyValueHeads: number;
  headDim: number;
  layers: number;
  vocabulary: number;
}

interface NamedShape {
  name: string;
  shape: number[];
}

const ELEMENT_BYTES = 2;
const CHUNK_BYTES = 8 * 2 ** 20;

/** Deals the tensors out over `files` files, in order, with an index. */
export async function writeCheckpoint(
  directory: string,
  shape: LlamaShape,
  { files, seed = 0 }: { files: number; seed?: number },
): Promise<void> {
  await mkdir(directory, { recursive: true });
  const tensors = tensorsOf(shape);
  const totalBytes = tensors.reduce((sum, tensor) => sum + bytesOf(tensor), 0);
  const shares = Array.from({ length: files }, (): NamedShape[] => []);
  let before = 0;
  for (const tensor of tensors) {
    shares[Math.min(files - 1, Math.floor((before / totalBytes) * files))]?.push(tensor);
    before += bytesOf(tensor);
  }
  const weightMap: Record<string, string> = {};
  for (const [index, share] of shares.entries()) {
    const name = `model-${padded(index + 1)}-of-${padded(files)}.safetensors`;
    for (const tensor of share) weightMap[tensor.name] = name;
    await writeTensors(join(directory, name), share, seed * files + index);
  }
  const index = { metadata: { total_size: totalBytes }, weight_map: weightMap };
  await writeFile(join(directory, "model.safetensors.index.json"), JSON.stringify(index));
  await writeFile(join(directory, "config.json"), JSON.stringify(configOf(shape)));
}

export function checkpointBytes(shape: LlamaShape): number {
  return tensorsOf(shape).reduce((sum, tensor) => sum + bytesOf(tensor), 0);
}

/** The same files as a checkpoint of fewer layers: those beyond its configuration are skipped. */
export async function linkCheckpoint(from: string, to: string, shape: LlamaShape): Promise<void> {
  await mkdir(to);
  const names = (await readdir(from)).filter((name) => name !== "config.json");
  for (const name of names) await link(join(from, name), join(to, name));
  await writeFile(join(to, "config.json"), JSON.stringify(configOf(shape)));
}

function tensorsOf({
  hidden,
  intermediate,
  heads,
  keyValueHeads,
  headDim,
  layers,
  vocabulary,
}: LlamaShape): NamedShape[] {
  const layer = (index: number): NamedShape[] =>
    Object.entries({
      "self_attn.q_proj": [heads * headDim, hidden],
      "self_attn.k_proj": [keyValueHeads * headDim, hidden],
      "self_attn.v_proj": [keyValueHeads * headDim, hidden],
      "self_attn.o_proj": [hidden, heads * headDim],
      "mlp.gate_proj": [intermediate, hidden],
      "mlp.up_proj": [intermediate, hidden],
      "mlp.down_proj": [hidden, intermediate],
      input_layernorm: [hidden],
      post_attention_layernorm: [hidden],
    }).map(([module, shape]) => ({ name: `model.layers.${index}.${module}.weight`, shape }));
  return [
    { name: "model.embed_tokens.weight", shape: [vocabulary, hidden] },
    ...Array.from({ length: layers }, (_, index) => layer(index)).flat(),
    { name: "model.norm.weight", shape: [hidden] },
    { name: "lm_head.weight", shape: [vocabulary, hidden] },
  ];
}

function configOf({ hidden, intermediate, heads, keyValueHeads, headDim, layers, vocabulary }: LlamaShape) {
  return {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    hidden_size: hidden,
    intermediate_size: intermediate,
    num_attention_heads: heads,
    num_key_value_heads: keyValueHeads,
    head_dim: headDim,
    num_hidden_layers: layers,
    vocab_size: vocabulary,
    tie_word_embeddings: false,
    torch_dtype: "bfloat16",
  };
}

async function writeTensors(path: string, tensors: readonly NamedShape[], seed: number): Promise<void> {
  const header: Record<string, unknown> = {};
  let end = 0;
  for (const tensor of tensors) {
    header[tensor.name] = { dtype: "BF16", shape: tensor.shape, data_offsets: [end, end + bytesOf(tensor)] };
    end += bytesOf(tensor);
  }
  const json = Buffer.from(JSON.stringify(header));
  const lengthBytes = Buffer.alloc(8);
  lengthBytes.writeBigUInt64LE(BigInt(json.byteLength));
  const file = await open(path, "w");
  try {
    await file.writev([lengthBytes, json]);
    const chunk = new Uint32Array(CHUNK_BYTES / 4);
    let state = 0x9e3779b9 ^ (seed + 1);
    for (let written = 0; written < end; written += CHUNK_BYTES) {
      state = fillFinite(chunk, state);
      await file.writeFile(new Uint8Array(chunk.buffer, 0, Math.min(CHUNK_BYTES, end - written)));
    }
  } finally {
    await file.close();
  }
}

/** Two BF16 a word, from Marsaglia's xorshift; of the exponent only the low four bits are random. */
function fillFinite(words: Uint32Array, seed: number): number {
  let state = seed;
  for (let index = 0; index < words.length; index++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[index] = (state & 0x87ff87ff) | 0x38003800;
  }
  return state;
}

function bytesOf({ shape }: NamedShape): number {
  return shape.reduce((product, size) => product * size, ELEMENT_BYTES);
}

function padded(index: number): string {
  return String(index).padStart(5, "0");
}
