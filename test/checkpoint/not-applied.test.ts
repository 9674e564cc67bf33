// What would change a checkpoint's weights and is not applied to them is said by name.

import { describe, expect, it } from "vitest";
import { parseModelConfig } from "../../orchestrator/checkpoint/model-config.js";
import { filesNotApplied, quantizationNotApplied } from "../../orchestrator/checkpoint/not-applied.js";
import type { CheckpointTensor } from "../../orchestrator/contract/plan.js";
import { planned } from "../planner/changed-llama.js";

const WHOLE = "model.safetensors";
const tensorsOf = (...dtypes: CheckpointTensor["dtype"][]) =>
  new Map(dtypes.map((dtype, at) => [`t${at}`, { name: `t${at}`, dtype, shape: [1], file: 0, offset: 0 }]));
const PLAIN = tensorsOf("BF16", "F32");
const CODES = tensorsOf("BF16", "F8_E4M3", "F32");
const warnings = (beside: string[], tensors = PLAIN) =>
  filesNotApplied([WHOLE, "config.json", "tokenizer.json", ...beside], [WHOLE], tensors);

describe("beside a model", () => {
  it("an adapter is named with its files, whoever wrote it", () => {
    const files = ["adapter_config.json", "adapter_model.safetensors"];
    expect(warnings(files)).toMatchObject([{ code: "adapter_not_applied", details: { files } }]);
    expect(warnings(files)[0]?.message).toMatch(
      /adapter_config\.json.*adapter_model\.safetensors.*not applied.*[Mm]erge/,
    );
    for (const name of [
      "adapter_model.bin",
      "adapter_model-00001-of-00002.safetensors",
      "adapters.safetensors",
      "lora.safetensors",
      "pytorch_lora_weights.safetensors",
      "adapter_config.json",
    ])
      expect(warnings([name])).toMatchObject([
        { code: "adapter_not_applied", message: expect.stringContaining(`"${name}"`) },
      ]);
  });

  it("a quantizer's file is named where no tensor is codes", () => {
    for (const name of ["hf_quant_config.json", "quantize_config.json", "quant_config.json"]) {
      expect(warnings([name])).toMatchObject([
        { code: "quantization_not_applied", message: expect.stringContaining(`"${name}"`) },
      ]);
      expect(warnings([name], CODES)).toEqual([]);
    }
  });

  it("scales of a cache that lie in a file of their own are named", () => {
    expect(warnings(["kv_cache_scales.json"], CODES)).toMatchObject([{ code: "cache_scales_not_applied" }]);
  });

  it("what changes no weights is not, nor a file that is read", () => {
    expect(
      warnings(["optimizer.safetensors", "README.md", "adapterless.json", "lora.md", "generation_config.json"]),
    ).toEqual([]);
    expect(filesNotApplied(["lora-merged.safetensors"], ["lora-merged.safetensors"], PLAIN)).toEqual([]);
  });
});

describe("a config's quantization", () => {
  const said = (fields: object, tensors = PLAIN) =>
    quantizationNotApplied(parseModelConfig(JSON.stringify(fields), "/ckpt/config.json"), tensors);
  const fp8 = { quant_method: "fp8" };

  it("is named with its field and method where no tensor is codes, whatever method it is", () => {
    for (const method of ["fp8", "gptq", "bitsandbytes"])
      expect(said({ quantization_config: { quant_method: method } })).toMatchObject([
        {
          code: "quantization_not_applied",
          message: expect.stringContaining(
            `/ckpt/config.json has quantization_config ("${method}"), which is not applied`,
          ),
          details: { file: "/ckpt/config.json", fields: ["quantization_config"] },
        },
      ]);
    const fields = { quantization: { bits: 4 }, compression_config: fp8, text_config: { quantization_config: fp8 } };
    expect(said(fields)).toMatchObject([
      { details: { fields: ["compression_config", "quantization", "text_config.quantization_config"] } },
    ]);
  });

  it("is not where there are codes, or where it says nothing", () => {
    expect(said({ quantization_config: fp8 }, CODES)).toEqual([]);
    for (const value of [null, {}]) expect(said({ quantization_config: value, quantization: value })).toEqual([]);
    expect(said({ text_config: null })).toEqual([]);
  });

  it("is a warning of the plan, which is the same without it", () => {
    const plan = planned({ fields: { quantization_config: fp8 } });
    expect(plan.warnings).toMatchObject([{ code: "quantization_not_applied" }]);
    expect(plan.mappingDigest).toBe(planned({}).mappingDigest);
  });
});
