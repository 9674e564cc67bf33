// Names of a wrapped model become those of the model; names of which only some are wrapped are refused with the prefix.

import { describe, expect, it } from "vitest";
import { unwrapNames } from "../../orchestrator/checkpoint/tensor-names.js";
import { expectLayercastError } from "./expect-error.js";

const PLAIN = [
  "lm_head.weight",
  "model.embed_tokens.weight",
  "model.layers.0.self_attn.q_proj.weight",
  "model.layers.1.mlp.experts.7.down_proj.weight",
  "model.norm.weight",
];
const unwrap = (names: string[]) => {
  const { plainOf, warning } = unwrapNames(names, "/ckpt");
  return { names: names.map(plainOf), warning };
};
const refused = (names: string[], sentence: RegExp) =>
  expectLayercastError(() => unwrap(names), "tensor_unexpected", sentence);

describe("unwrapNames", () => {
  it("leaves plain names, and those of a model within a larger one, as they are", () => {
    const larger = [
      "language_model.model.layers.0.x",
      "vision_tower.y",
      "model.language_model.layers.0.x",
      "language_model.lm_head.weight",
    ];
    for (const names of [PLAIN, larger, [], ["a", "b.c"]]) expect(unwrap(names)).toEqual({ names, warning: null });
  });

  it.each([
    "module.",
    "_orig_mod.",
    "base_model.model.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
    "_forward_module.",
    "model.",
    "module._orig_mod.",
    "_fsdp_wrapped_module.module.base_model.model.",
  ])("takes %s off names that all have it, and says so", (prefix) => {
    const { names, warning } = unwrap(PLAIN.map((name) => prefix + name));
    expect(names).toEqual(PLAIN);
    expect(warning).toMatchObject({ code: "names_unwrapped", message: expect.stringContaining(`"${prefix}"`) });
  });

  it("takes wrappers out of names, which only some modules have", () => {
    const wrapped = [
      "lm_head.weight",
      "model._orig_mod.embed_tokens.weight",
      "model.layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.self_attn.q_proj.base_layer.weight",
      "model.layers.1.mlp.experts.7.down_proj.base_layer.weight",
      "model.norm.weight",
    ];
    const { names, warning } = unwrap(wrapped);
    expect(names).toEqual(PLAIN);
    expect(warning?.message).toMatch(/"\._orig_mod\." is taken out of names.*So "model\._orig_mod\./);
    expect(unwrap(wrapped.map((name) => `base_model.model.${name}`)).names).toEqual(PLAIN);
  });

  it("puts the model. before names that lack it, and leaves a head as it is", () => {
    const bare = PLAIN.map((name) => name.replace(/^model\./, ""));
    expect(unwrap(bare).names).toEqual(PLAIN);
    expect(unwrap(bare).warning?.message).toContain('"model." is put before names');
    expect(unwrap(bare.map((name) => `module.${name}`)).names).toEqual(PLAIN);
    expect(unwrap(["language_model.layers.0.x", "vision_tower.y"]).names).toEqual([
      "model.language_model.layers.0.x",
      "vision_tower.y",
    ]);
  });

  it("does not take a vendor's own names for a model's", () => {
    const vendors = ["tok_embeddings.weight", "layers.0.attention.wq.weight", "norm.weight", "output.weight"];
    expect(unwrap(vendors)).toEqual({ names: vendors, warning: null });
  });

  it("refuses names of which only some have a prefix, and shows it", () => {
    const mixed = (prefix: string) => PLAIN.map((name, at) => (at === 2 ? prefix + name : name));
    for (const prefix of ["module.", "_orig_mod.", "base_model.model."]) {
      const { details } = refused(mixed(prefix), /All must have it, or none/);
      expect(details).toMatchObject({ prefix, tensors: [prefix + PLAIN[2], PLAIN[0]] });
    }
    refused(["module._orig_mod.model.a", "module.model.b"], /prefix "module\._orig_mod\."/);
    refused(["model.layers.0.a", "layers.1.a"], /prefix "model\."/);
  });

  it("refuses two names that are one without their wrappers", () => {
    refused(["model.a.base_layer.weight", "model.a.weight"], /both "model\.a\.weight" without/);
  });

  it("refuses what an adapter has, by name", () => {
    for (const name of [
      "q_proj.lora_A.weight",
      "q_proj.lora_B.default.weight",
      "lm_head.modules_to_save.default.weight",
    ])
      refused(
        [`base_model.model.${name}`, "base_model.model.model.norm.weight"],
        /adapter, such as .*Merge the adapter/,
      );
  });
});
