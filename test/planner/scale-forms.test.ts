import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DTYPES } from "../../orchestrator/contract/dtype.js";
import { checkPlan } from "../../orchestrator/planner/check/check-plan.js";
import { planReload } from "../../orchestrator/planner/plan-reload.js";
import { layoutArenas } from "../../orchestrator/program/arena-layout.js";
import { encoded, fillArena } from "../program/interpret-program.js";
import { LLAMA, type Synthetic, shapesOf, synthesize } from "./synthetic-checkpoint.js";
import {
  deepseekCase,
  diskOf,
  expertsOf,
  type MoeCase,
  moeCases,
  PLAIN_SCALES,
  quantizedOnDisk,
  type ScaleForm,
  type ScaleKind,
} from "./synthetic-moe.js";

/** The plain form of it, with the same codes and the same numbers for scales. */
function plainTwin(checkpoint: Synthetic, model: MoeCase, kind: ScaleKind): Synthetic {
  const twin = quantizedOnDisk(model, kind, PLAIN_SCALES);
  const [from, to] = [diskOf(checkpoint), diskOf(twin)];
  for (const name of twin.table.tensors.keys()) {
    const [stem = name, isScale] = name.split(/_scale(?:_inv)?$/);
    if (isScale === undefined) {
      to(name).bytes.set(from(name).bytes);
      continue;
    }
    const other = [`${stem}_scale`, `${stem}_scale_inv`].find((one) => checkpoint.table.tensors.has(one)) ?? "";
    const isExponent = checkpoint.table.tensors.get(other)?.dtype === "F8_E8M0";
    const values = from(other).bytes;
    if (!isExponent) to(name).bytes.set(values);
    else for (const [at, exponent] of values.entries()) to(name).bytes.set(floatOf(exponent), at * 4);
  }
  return twin;
}

const floatOf = (exponent: number) => encoded(2 ** (exponent - 127), DTYPES.F32.code);

/** What the ranks hold, by name, dtype and shape. */
function held({ table, config, files }: Synthetic, model: MoeCase, scheme: "as-stored" | "none") {
  const { ranks, expertParallel } = model;
  const dtype = scheme === "none" ? "bfloat16" : "auto";
  const asked = { tensorParallelSize: ranks, expertParallel, ignore: [], scheme, dtype } as const;
  const plan = planReload({ table, config, ...asked });
  checkPlan(plan, table);
  return layoutArenas(plan.layout).map((arena, rank) => {
    const { bytes } = fillArena(plan, arena, rank, files);
    return arena.tensors.map(({ name, dtype, shape, offset, bytes: size }) => ({
      name,
      dtype,
      shape,
      bytes: Buffer.from(bytes.subarray(offset, offset + size)).toString("hex"),
    }));
  });
}

const forms: fc.Arbitrary<ScaleForm> = fc.record({
  dtype: fc.constantFrom("F32", "F8_E8M0"),
  shape: fc.constantFrom("column", "vector", "row"),
  suffix: fc.constantFrom("_scale", "_scale_inv", "by kind"),
});

describe("scales of codes", () => {
  const cases = fc.tuple(
    moeCases(128, { most: 1, ranks: [1, 2] }).filter(
      ({ form, fields }) => form !== "transposed" && expertsOf(fields) < 4 && fields.num_hidden_layers === 1,
    ),
    fc.constantFrom<ScaleKind>("block", "channel", "tensor"),
    forms,
  );

  it("give the same kernel tensors under every name, in every shape, as exponents and as floats", () => {
    fc.assert(
      fc.property(cases, ([model, kind, form]) => {
        const written = quantizedOnDisk(model, kind, form);
        const plain = plainTwin(written, model, kind);
        for (const scheme of ["as-stored", "none"] as const)
          expect(held(written, model, scheme)).toEqual(held(plain, model, scheme));
      }),
      { numRuns: 6, interruptAfterTimeLimit: 6_000 },
    );
  }, 60_000);

  it.each(["each", "stacked"] as const)("a row lie in [rows, 1], [rows] and [1, rows], of experts %s too", (form) => {
    const kernelsOf = (shape: ScaleForm["shape"]) => {
      const model = deepseekCase(form);
      const { table, config } = quantizedOnDisk(model, "channel", { ...PLAIN_SCALES, shape });
      const plan = planReload({ ...ASKED, table, config, scheme: "as-stored" });
      checkPlan(plan, table);
      return plan.layout.layers.flatMap(({ kernelTensors }) => kernelTensors.map(({ name, shape }) => [name, shape]));
    };
    expect(kernelsOf("vector")).toEqual(kernelsOf("column"));
    expect(kernelsOf("row")).toEqual(kernelsOf("column"));
  });
});

const ASKED = { tensorParallelSize: 2, expertParallel: false, ignore: [], dtype: "auto" } as const;
const HIDDEN = LLAMA.hidden_size;

/** A Llama whose head is codes: 1, 1.125, 1.25 and so on up to 1.875 in any order, with scales that differ. */
function withFp8Head(vocabulary: number, scaleShape: number[]): Synthetic {
  const fields = { ...LLAMA, vocab_size: vocabulary };
  const shapes = { ...shapesOf(fields), "lm_head.weight_scale": scaleShape };
  const dtypes = { "lm_head.weight": "F8_E4M3", "lm_head.weight_scale": "F32" } as const;
  const checkpoint = synthesize(fields, shapes, { dtypes });
  const disk = diskOf(checkpoint);
  const codes = disk("lm_head.weight").bytes;
  codes.set(codes.map((_, at) => 0x38 + ((at * 5) % 8)));
  const scales = disk("lm_head.weight_scale").bytes;
  for (let at = 0; at < scales.length; at += 4) scales.set(encoded(2 ** ((at / 4) % 5), DTYPES.F32.code), at);
  return checkpoint;
}

/** A kernel tensor of all ranks, one behind the other. */
function ofAllRanks(checkpoint: Synthetic, ranks: number, scheme: "as-stored" | "none" | "fp8-tensor", name: string) {
  const { table, config, files } = checkpoint;
  const dtype = scheme === "as-stored" ? "auto" : "bfloat16";
  const plan = planReload({ ...ASKED, table, config, tensorParallelSize: ranks, scheme, dtype });
  checkPlan(plan, table);
  return layoutArenas(plan.layout).map((arena, rank) => {
    const tensor = arena.tensors.find((one) => one.name === name);
    if (tensor === undefined) throw new Error(`rank ${rank} has no ${name}`);
    const { bytes } = scheme === "fp8-tensor" ? { bytes: new Uint8Array() } : fillArena(plan, arena, rank, files);
    return { ...tensor, bytes: Buffer.from(bytes.subarray(tensor.offset, tensor.offset + tensor.bytes)) };
  });
}

describe("a head of FP8 codes", () => {
  it.each<[kind: string, vocabulary: number, scaleShape: number[], ranks: number, name: string, ofRank: number[]]>([
    ["a row", 100, [100, 1], 2, "lm_head.weight_scale", [64, 1]],
    ["a row, with a rank of padding alone", 40, [40], 4, "lm_head.weight_scale", [16, 1]],
    ["a block", 250, [2, 1], 2, "lm_head.weight_scale_inv", [1, 1]],
    ["a tensor", 100, [], 2, "lm_head.weight_scale", [1]],
  ])("stays what it is, with a scale %s, and rows past the vocabulary are zero", (...given) => {
    const [kind, vocabulary, scaleShape, ranks, name, ofRank] = given;
    const checkpoint = withFp8Head(vocabulary, scaleShape);
    const disk = diskOf(checkpoint);
    const codes = ofAllRanks(checkpoint, ranks, "as-stored", "lm_head.weight");
    const scales = ofAllRanks(checkpoint, ranks, "as-stored", name);
    const padded = (bytes: Uint8Array, length: number) => Buffer.concat([bytes, Buffer.alloc(length - bytes.length)]);
    const allCodes = Buffer.concat(codes.map(({ bytes }) => bytes));
    expect(allCodes.equals(padded(disk("lm_head.weight").bytes, allCodes.length))).toBe(true);
    expect(scales.map(({ dtype, shape }) => [dtype, shape])).toEqual(scales.map(() => ["F32", ofRank]));
    const stored = disk("lm_head.weight_scale").bytes;
    const found = Buffer.concat(scales.map(({ bytes }) => bytes));
    const expected = kind === "a tensor" ? Buffer.concat(scales.map(() => stored)) : padded(stored, found.length);
    expect(found.equals(expected)).toBe(true);
  });

  it("becomes values that no recipe quantizes", () => {
    const checkpoint = withFp8Head(100, [100, 1]);
    const values = ofAllRanks(checkpoint, 2, "none", "lm_head.weight");
    const all = Buffer.concat(values.map(({ bytes }) => bytes));
    for (let at = 0; at < 128 * HIDDEN; at++) {
      const row = Math.floor(at / HIDDEN);
      const value = row < 100 ? (1 + ((at * 5) % 8) / 8) * 2 ** (row % 5) : 0;
      expect(all.readUInt16LE(at * 2)).toBe(Buffer.from(encoded(value, DTYPES.BF16.code)).readUInt16LE(0));
    }
    expect(ofAllRanks(checkpoint, 2, "fp8-tensor", "lm_head.weight")[0]?.dtype).toBe("BF16");
  });

  it("is skipped with its scales where the embedding serves as the head", () => {
    const { table, config } = withFp8Head(100, [100, 1]);
    const tied = { ...config, fields: { ...config.fields, tie_word_embeddings: true } };
    const { skipped } = planReload({ ...ASKED, table, config: tied, scheme: "none", dtype: "bfloat16" });
    expect(skipped.map(({ name }) => name)).toEqual(["lm_head.weight", "lm_head.weight_scale"]);
  });
});
