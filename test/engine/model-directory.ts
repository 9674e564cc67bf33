// A directory as `vllm serve` wants it, with config and tokenizer and without weights: out of an arena none are read.

import { copyFile, mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";

/** The tokenizer has one word for each id. */
export async function modelDirectory(checkpoint: string, directory: string): Promise<string> {
  await mkdir(directory);
  await copyFile(join(checkpoint, "config.json"), join(directory, "config.json"));
  const { vocab_size } = JSON.parse(await readFile(join(checkpoint, "config.json"), "utf8")) as { vocab_size: number };
  const vocab = Object.fromEntries(Array.from({ length: vocab_size }, (_, id) => [`t${id}`, id]));
  const tokenizer = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: { type: "WhitespaceSplit" },
    post_processor: null,
    decoder: null,
    model: { type: "WordLevel", vocab, unk_token: "t2" },
  };
  const words = { bos_token: "t0", eos_token: "t1", pad_token: "t1", unk_token: "t2" };
  const settings = { tokenizer_class: "PreTrainedTokenizerFast", model_max_length: 4096, ...words };
  await writeFile(join(directory, "tokenizer.json"), JSON.stringify(tokenizer));
  await writeFile(join(directory, "tokenizer_config.json"), JSON.stringify(settings));
  return directory;
}
