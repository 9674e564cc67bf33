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

  it("takes NaN and infinities, as Python writes them, where nobody needs the number", () => {
    const text =
      '{"hidden_size":8, "rope_theta": NaN,"a":[Infinity , -Infinity,NaN],"b":{"c":-Infinity},"NaN":"-Infinity, \\"NaN"}';
    expect(parse(text).fields).toEqual({
      hidden_size: 8,
      rope_theta: "NaN",
      a: ["Infinity", "-Infinity", "NaN"],
      b: { c: "-Infinity" },
      NaN: '-Infinity, "NaN',
    });
    for (const wrong of ["-NaN", "+Infinity", "nan", "inf", "NaN1", "1NaN", "- Infinity", "NaN NaN", "{NaN:1}", '"NaN'])
      expectLayercastError(() => parse(`{"a":${wrong}}`), "checkpoint_invalid", /is not JSON/);
  });

  it.each(["NaN", "Infinity", "-Infinity"])("refuses %s by name where a value is needed", (value) => {
    const config = parse(`{"head_dim":${value},"attention_bias":${value},"mlp_only_layers":[${value}]}`);
    const refusal = (name: string) => new RegExp(`must give ${name} as .*; it is \\[?"${value}"`);
    expectLayercastError(() => readSize(config, "head_dim", 8), "checkpoint_invalid", refusal("head_dim"));
    expectLayercastError(() => readSizeOrNull(config, "head_dim"), "checkpoint_invalid", refusal("head_dim"));
    expectLayercastError(() => readCount(config, "head_dim", 0), "checkpoint_invalid", refusal("head_dim"));
    expectLayercastError(
      () => readFlag(config, "attention_bias", false),
      "checkpoint_invalid",
      refusal("attention_bias"),
    );
    expectLayercastError(
      () => readIndexes(config, "mlp_only_layers"),
      "checkpoint_invalid",
      refusal("mlp_only_layers"),
    );
  });

  it.each([
    ['"3"', '"3"'],
    ["[1,128]", "[1, 128]"],
    ['["a\\n"]', '["a\\n"]'],
    ["1.50", "1.5"],
    ["true", "true"],
    ['{"a":1}', "an object"],
    ["[1,2,3,4,5]", "[1, 2, 3, 4, …]"],
    ["[[[1]]]", "[[[…]]]"],
  ])("shows a wrong value once: %s", (text, shownAs) => {
    const read = () => readSize(parse(`{"hidden_size":${text}}`), "hidden_size");
    const { message } = expectLayercastError(read, "checkpoint_invalid", /must give hidden_size/);
    expect(message).toContain(`; it is ${shownAs}. Correct it.`);
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
