import { describe, expect, it } from "vitest";
import {
  nestedConfig,
  parseModelConfig,
  readCount,
  readFlag,
  readIndexes,
  readSize,
  readSizeOrNull,
} from "../../orchestrator/checkpoint/model-config.js";
import { expectLayercastError } from "./expect-error.js";

const parse = (text: string) => parseModelConfig(text, "/ckpt/config.json");

describe("parseModelConfig", () => {
  it("reads the architecture and the model type, each of which may be absent", () => {
    expect(parse('{"architectures":["LlamaForCausalLM","x"],"model_type":"llama"}')).toMatchObject({
      architecture: "LlamaForCausalLM",
      modelType: "llama",
    });
    expect(parse('{"architectures":null}')).toMatchObject({ architecture: null, modelType: null });
    expect(parse('{"architectures":[]}')).toMatchObject({ architecture: null, modelType: null });
  });

  it.each(["", "{", "[]", "null", '{"architectures":"x"}', '{"architectures":[1]}', '{"model_type":1}'])(
    "refuses %j as checkpoint_invalid, naming the file",
    (text) => {
      expectLayercastError(() => parse(text), "checkpoint_invalid", /^\/ckpt\/config\.json /);
    },
  );

  it("reads sizes as whole numbers from 1 to 2^31 - 1", () => {
    const config = parse('{"hidden_size":4096,"head_dim":null}');
    expect(readSize(config, "hidden_size")).toBe(4096);
    expect(readSize(config, "head_dim", 128)).toBe(128);
    expect(readSize(config, "num_key_value_heads", 8)).toBe(8);
    for (const wrong of ["0", "-1", "1.5", '"8"', "true", "1e300", "2147483648", "[]"]) {
      const hostile = parse(`{"hidden_size":${wrong}}`);
      expectLayercastError(
        () => readSize(hostile, "hidden_size"),
        "checkpoint_invalid",
        /must give hidden_size as a whole/,
      );
    }
    expectLayercastError(() => readSize(config, "vocab_size"), "checkpoint_invalid", /vocab_size .* is missing/);
    expectLayercastError(() => readSize(config, "head_dim", 12.5), "checkpoint_invalid", /head_dim/);
  });

  it("reads flags as true or false, and no field that every object has", () => {
    const config = parse('{"tie_word_embeddings":true,"mlp_bias":"no","__proto__":{"attention_bias":true}}');
    expect(readFlag(config, "tie_word_embeddings", false)).toBe(true);
    expect(readFlag(config, "attention_bias", false)).toBe(false);
    expect(readFlag(config, "toString", false)).toBe(false);
    expectLayercastError(() => readFlag(config, "mlp_bias", false), "checkpoint_invalid", /mlp_bias as true or false/);
  });

  it("reads sizes that may be absent, counts that may be 0, and lists of indexes", () => {
    const config = parse('{"q_lora_rank":null,"n_shared_experts":0,"mlp_only_layers":[0,7]}');
    expect(readSizeOrNull(config, "q_lora_rank")).toBeNull();
    expect(readCount(config, "n_shared_experts", 3)).toBe(0);
    expect(readCount(config, "first_k_dense_replace", 3)).toBe(3);
    expect(readIndexes(config, "mlp_only_layers")).toEqual([0, 7]);
    expect(readIndexes(config, "toString")).toEqual([]);
    for (const wrong of ["-1", "1.5", '"0"', "{}", "[-1]", "[0.5]", '["0"]', "false"]) {
      const hostile = parse(`{"mlp_only_layers":${wrong}}`);
      for (const read of [readSizeOrNull, readIndexes, (...of: [typeof hostile, string]) => readCount(...of, 0)])
        expectLayercastError(() => read(hostile, "mlp_only_layers"), "checkpoint_invalid", /must give mlp_only_layers/);
    }
  });

  it("reads a nested config, which comes before the outer one and leaves the rest to it", () => {
    const config = parse(
      '{"model_type":"a","dtype":"float16","vocab_size":1,"text":{"model_type":"b","vocab_size":2}}',
    );
    const text = nestedConfig(config, "text");
    expect(text?.modelType).toBe("b");
    expect(text?.fields).toMatchObject({ vocab_size: 2, dtype: "float16" });
    expect(nestedConfig(config, "vision")).toBeNull();
    for (const wrong of ["1", "[]", '"x"', '{"model_type":1}'])
      expectLayercastError(() => nestedConfig(parse(`{"text":${wrong}}`), "text"), "checkpoint_invalid", /must give /);
  });
});
