// Texts of an index and of a config.json: right ones, and ones in which one thing or a few have gone wrong.

import type { Random } from "../../schedules/random.js";
import { anyJson, anyName, damaged, nested, oddNumber, quote, space } from "./text-inputs.js";

const FILES = "model.safetensors model-00001-of-00002.safetensors é.safetensors .safetensors ..safetensors".split(" ");
const HOSTILE_FILES = [
  ..."../model.safetensors /etc/passwd.safetensors a/b.safetensors a\\b.safetensors model.safetensors/ model.bin".split(
    " ",
  ),
  ...["", "a\u0000.safetensors", "a\n.safetensors", "a\u0085.safetensors", "a\u007f.safetensors", "A.SAFETENSORS"],
  ...[`${"x".repeat(260)}.safetensors`, "model.safetensors\u200b"],
];

export function indexInput(random: Random): Uint8Array {
  if (random.chance(0.01)) return Buffer.from(anyJson(random));
  const file = () => quote(random, random.pick(random.chance(0.95) ? FILES : HOSTILE_FILES));
  const value = () => (random.chance(0.97) ? file() : anyJson(random));
  const names = Array.from({ length: random.pick([0, 1, 2, 3, 6]) }, () => anyName(random));
  const distinct = random.chance(0.9) ? [...new Set(names)] : names;
  const entries = distinct.map((name) => `${space(random)}${quote(random, name)}:${value()}`);
  const map = random.chance(0.95) ? `{${entries.join(",")}}` : anyJson(random);
  const others = random.chance(0.5) ? ['"metadata":{"total_size":1e9}'] : [];
  if (random.chance(0.1))
    others.push(`${quote(random, anyName(random))}:${random.chance(0.8) ? anyJson(random) : nested(random)}`);
  const key = random.chance(0.97) ? "weight_map" : anyName(random);
  const bytes = Buffer.from(
    `${random.chance(0.03) ? "\ufeff" : ""}{${[...others, `"${key}":${map}`].join(",")}}${space(random)}`,
  );
  return random.chance(0.3) ? damaged(random, bytes) : bytes;
}

const REQUIRED = [
  ...["hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"],
  ...["num_hidden_layers", "vocab_size"],
];
const SIZES = [
  "num_experts num_local_experts n_routed_experts n_shared_experts moe_intermediate_size shared_expert_intermediate_size",
  "q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim first_k_dense_replace moe_layer_freq",
  "decoder_sparse_step num_experts_per_tok n_group",
].flatMap((names) => names.split(" "));
const FLAGS = "tie_word_embeddings attention_bias mlp_bias qkv_bias use_qk_norm".split(" ");
const OTHERS = "quantization_config text_config torch_dtype dtype vision_config topk_method".split(" ");

/** `known`: architectures and model types that a config may name. */
export function configInput(
  random: Random,
  known: { architectures: readonly string[]; modelTypes: readonly string[] },
): string {
  if (random.chance(0.01)) return anyJson(random);
  const fields = new Map<string, string>();
  const put = (name: string, right: string) => {
    if (random.chance(0.97)) fields.set(name, random.chance(0.975) ? right : wrongValue(random));
  };
  if (random.chance(0.8)) put("architectures", JSON.stringify([nameFrom(random, known.architectures)]));
  if (random.chance(0.02)) fields.set("architectures", random.pick(["{}", '"x"', "[1]", "[]", "[[]]", "null"]));
  if (random.chance(0.8)) put("model_type", JSON.stringify(nameFrom(random, known.modelTypes)));
  const size = () => String(random.pick([1, 2, 4, 8, 64, 96, 2048]));
  for (const name of REQUIRED) put(name, size());
  for (const name of SIZES) if (random.chance(0.7)) put(name, random.chance(0.05) ? "0" : size());
  if (random.chance(0.2)) put("mlp_only_layers", random.pick(["[]", "[0]", "[1,0]", "[-1]", "[0.5]", "[null]"]));
  if (random.chance(0.2)) put("topk_method", '"noaux_tc"');
  for (const name of FLAGS) if (random.chance(0.3)) put(name, String(random.chance(0.5)));
  for (const name of OTHERS) if (random.chance(0.1)) fields.set(name, anyJson(random));
  if (random.chance(0.1)) fields.set("rope_theta", notFinite(random));
  if (random.chance(0.05)) fields.set("text_config", configInput(random, known));
  if (random.chance(0.02)) fields.set("extra", nested(random));
  const text = `{${[...fields].map(([name, value]) => `${JSON.stringify(name)}:${value}`).join(",")}}`;
  return random.chance(0.15) ? new TextDecoder().decode(damaged(random, Buffer.from(text))) : text;
}

function nameFrom(random: Random, names: readonly string[]): string {
  return random.chance(0.95) ? random.pick(names) : anyName(random);
}

/** As Python writes it, alone or in a list or object, or nearly so. */
function notFinite(random: Random): string {
  const word = random.pick(random.chance(0.8) ? ["NaN", "Infinity", "-Infinity"] : NEARLY);
  return random.pick([word, word, `[1, ${word}]`, `{"a": ${word} }`, `{${word}: 1}`, `"${word}"`, `"\\"${word}"`]);
}

const NEARLY = ["-NaN", "+Infinity", "nan", "NaN1", "1NaN", "- Infinity", "NaNNaN", '"NaN', 'NaN"', "\\NaN"];

function wrongValue(random: Random): string {
  if (random.chance(0.1)) return notFinite(random);
  if (random.chance(0.02)) return random.pick(["[[[1]]]", "[1,2,3,4,5]"]);
  return random.chance(0.6) ? random.pick(["0", "null", "2147483647", oddNumber(random)]) : anyJson(random);
}
