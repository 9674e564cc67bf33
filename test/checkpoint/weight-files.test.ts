// Which files of a directory are the checkpoint, with an index and without one.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { chooseWeightFiles, OTHER_PURPOSES } from "../../orchestrator/checkpoint/weight-files.js";
import type { ErrorCode } from "../../orchestrator/contract/errors.js";
import { packageRoot } from "../../orchestrator/host/package-root.js";
import { expectLayercastError } from "./expect-error.js";

const full = (name: string) => `${name}.safetensors`;
const shards = (total: number, first = 1, stem = "model", digits = 5) => {
  const text = (number: number) => String(number).padStart(digits, "0");
  return Array.from({ length: total }, (_, at) => full(`${stem}-${text(first + at)}-of-${text(total)}`));
};
const choose = (files: string[], index: string[] | null = null) =>
  chooseWeightFiles(
    "/ckpt",
    new Set([...files, "config.json"]),
    index === null ? null : new Map(index.map((file, at) => [`tensor.${at}`, file])),
  );
const namesOf = (files: string[], index: string[] | null = null) => choose(files, index).names;
const refused = (files: string[], index: string[] | null, code: ErrorCode, sentence: RegExp) =>
  expectLayercastError(() => choose(files, index), code, sentence);

const OTHERS = [
  "consolidated",
  "consolidated.00",
  "adapter_model",
  "optimizer",
  "ema",
  "ema_model",
  "lora",
  "optim-1",
].map(full);

describe("without an index", () => {
  it("model.safetensors alone is the checkpoint, whatever lies beside it", () => {
    const { names, warnings } = choose([...OTHERS, full("model")]);
    expect([names, warnings]).toEqual([[full("model")], []]);
    expect(namesOf([full("model"), ...shards(2)])).toEqual([full("model")]);
  });

  it("shards are, all that their own names say there are, counted from 1 or from 0", () => {
    for (const set of [shards(3), shards(3, 0), shards(2, 1, "model", 6), shards(2, 1, "pytorch_model")])
      expect(namesOf([...OTHERS, ...set])).toEqual(set);
    const mixedDigits = [full("model-00001-of-000002"), full("model-00002-of-000002")];
    expect(namesOf(mixedDigits)).toEqual(mixedDigits);
    const variant = shards(2).map((name) => name.replace(/\.safetensors$/, ".fp16.safetensors"));
    expect(namesOf(variant)).toEqual(variant);
    expect(namesOf([...variant, ...shards(2)])).toEqual(shards(2));
  });

  it("a shard that is missing is named, as the others are", () => {
    const error = refused(
      shards(3).filter((_, at) => at !== 1),
      null,
      "source_not_found",
      /2 of 3 shards.*model-00002-of-00003\.safetensors/,
    );
    expect(error.details).toEqual({ file: "/ckpt/model-00002-of-00003.safetensors", missing: shards(3).slice(1, 2) });
    refused([full("model-00001-of-000163")], null, "source_not_found", /model-00002-of-000163.*and 97 more/);
    refused([full("model-1-of-999999999")], null, "source_not_found", /1 of 999999999/);
  });

  it("shards of two saves are refused, for nothing says which belong together", () => {
    refused([...shards(2), ...shards(3)], null, "checkpoint_invalid", /shards of 2 saves/);
    refused([...shards(2, 1, "a"), ...shards(2, 1, "b")], null, "checkpoint_invalid", /a-00002-of-00002/);
  });

  it("one file of any other name is, and several together are", () => {
    for (const name of ["weights", "model.fp16", "pytorch_model", "emanuel", "step-100"])
      expect(namesOf([...OTHERS, full(name)])).toEqual([full(name)]);
    expect(namesOf([full("b"), full("a")])).toEqual([full("a"), full("b")]);
  });

  it("what is never weights is named where there is nothing else", () => {
    refused(
      [full("consolidated")],
      null,
      "checkpoint_invalid",
      /"consolidated\.safetensors".*name it model\.safetensors/,
    );
    for (const adapter of ["adapter_model", "lora", "pytorch_lora_weights"])
      refused([full(adapter)], null, "checkpoint_invalid", /an adapter.*Merge it into its base model/);
    refused([], null, "checkpoint_invalid", /has no \*\.safetensors file/);
  });

  it("a file that could be weights and is not read is said", () => {
    expect(choose([...shards(2), full("extra"), full("optimizer")]).warnings).toMatchObject([
      { code: "files_not_read", details: { files: [full("extra")] } },
    ]);
  });
});

describe("with an index", () => {
  it("the files that it names are the checkpoint, and no others", () => {
    expect(choose([...shards(2), ...OTHERS], shards(2))).toMatchObject({ names: shards(2), warnings: [] });
    const { names, warnings } = choose([...shards(2), full("model")], shards(2));
    expect([names, warnings.map(({ code }) => code)]).toEqual([shards(2), ["files_not_read"]]);
  });

  it("those of its files that are there are read: the plan says whether the others are needed", () => {
    const there = shards(3).slice(0, 2);
    const { names, weightMap, warnings } = choose(there, shards(3));
    expect([names, weightMap?.size, warnings]).toEqual([there, 3, []]);
  });

  it("one that names files that are gone, beside a whole model.safetensors, is stale: that is read, and it is said", () => {
    const { names, weightMap, warnings } = choose([full("model")], shards(2));
    expect([names, weightMap]).toEqual([[full("model")], null]);
    expect(warnings).toMatchObject([
      { code: "index_stale", message: expect.stringMatching(/stale.*model-00001-of-00002/) },
    ]);
    const beside = choose([full("model"), ...shards(2).slice(0, 1)], shards(2));
    expect([beside.names, beside.warnings.map(({ code }) => code)]).toEqual([
      [full("model")],
      ["index_stale", "files_not_read"],
    ]);
  });

  it("one of which no file is there is said to be stale, with what is there", () => {
    refused(shards(3), shards(2), "source_not_found", /none of it is there.*model-00001-of-00003.*stale/);
    refused([], shards(2), "source_not_found", /no \*\.safetensors file/);
  });
});

describe("docs/kernel-tensors.md", () => {
  it("lists the names of what is never weights, all of them and no others", () => {
    const text = readFileSync(join(packageRoot(), "docs/kernel-tensors.md"), "utf8").replaceAll("\n", " ");
    const [, list = ""] = /never read as weights[^:]*: ([^.]*)\./.exec(text) ?? [];
    expect([...list.matchAll(/`([^`]+)`/g)].map(([, name]) => name)).toEqual(OTHER_PURPOSES);
  });

  it("is right that such a name is one of a purpose where it ends or goes on after a mark, and only there", () => {
    for (const purpose of OTHER_PURPOSES) {
      for (const rest of ["", ".00", "_model", "-00001-of-00002"])
        expect(namesOf([full("weights"), full(purpose + rest)])).toEqual([full("weights")]);
      expect(namesOf([full(`${purpose}x`)])).toEqual([full(`${purpose}x`)]);
    }
  });
});
