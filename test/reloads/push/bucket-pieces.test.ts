// What a bucket's header is held against: it brings rows of tensors that the push was planned with, or is refused by name.

import { describe, expect, it } from "vitest";
import { parseModelConfig } from "../../../orchestrator/checkpoint/model-config.js";
import {
  HEADER_PREFIX_BYTES,
  parseSafetensorsHeader,
  readHeaderLength,
  type SafetensorsHeader,
} from "../../../orchestrator/checkpoint/safetensors-header.js";
import type { ErrorCode } from "../../../orchestrator/contract/errors.js";
import { type DeclaredTensor, ROW_RANGES_KEY } from "../../../orchestrator/contract/push.js";
import { declaredTable, skipRuleOf } from "../../../orchestrator/planner/declared-table.js";
import { planReload } from "../../../orchestrator/planner/plan-reload.js";
import { type Expected, piecesOf } from "../../../orchestrator/reloads/push/bucket-pieces.js";
import { type BuiltTensor, buildSafetensors } from "../../checkpoint/build-safetensors.js";
import { expectLayercastError } from "../../checkpoint/expect-error.js";
import { CONFIG } from "./open-push.js";

function expectedOf(fields: Record<string, unknown> = {}, tensors: DeclaredTensor[] | null = null): Expected {
  const config = parseModelConfig(JSON.stringify({ ...CONFIG, ...fields }), "source.config");
  const ranks = { tensorParallelSize: 2, expertParallel: false };
  const table = declaredTable(config, tensors);
  const { layout, source } = planReload({ table, config, ...ranks, scheme: "none", ignore: [], dtype: "auto" });
  const byName = new Map(layout.checkpointTensors.map(({ name }, index) => [name, index]));
  const mayDiffer = () => false;
  return { layout, dtypes: source.dtype, mayDiffer, byName, skipped: skipRuleOf(config) };
}

const EXPECTED = expectedOf();
const Q = "model.layers.0.self_attn.q_proj.weight";
const K = "model.layers.0.self_attn.k_proj.weight";
const NORM = "model.norm.weight";
const BF16 = (...shape: number[]): BuiltTensor => ({ dtype: "BF16", shape });

function headerOf(tensors: Record<string, BuiltTensor>, ranges?: unknown): SafetensorsHeader {
  const text = typeof ranges === "string" ? ranges : JSON.stringify(ranges);
  const bytes = buildSafetensors(tensors, ranges === undefined ? undefined : { [ROW_RANGES_KEY]: text });
  const length = readHeaderLength(bytes.subarray(0, HEADER_PREFIX_BYTES), bytes.byteLength, "bucket");
  return parseSafetensorsHeader(bytes.subarray(0, HEADER_PREFIX_BYTES + length), bytes.byteLength, "bucket");
}

const held = (tensors: Record<string, BuiltTensor>, ranges?: unknown, expected = EXPECTED) =>
  piecesOf(headerOf(tensors, ranges), expected, "bucket 7");
const index = (name: string, { byName } = EXPECTED) => byName.get(name) ?? -1;

function refused(
  tensors: Record<string, BuiltTensor>,
  ranges: unknown,
  code: ErrorCode,
  sentence: RegExp,
): Record<string, unknown> {
  return { ...expectLayercastError(() => held(tensors, ranges), code, sentence).details };
}

describe("a bucket", () => {
  it("brings whole tensors, and rows where its metadata says which, sorted as the plan has them", () => {
    const tensors = { [NORM]: BF16(24), [K]: BF16(2, 24), [Q]: BF16(24, 24) };
    const { offset: start } = headerOf(tensors, { [K]: { offset: [3, 0], global_shape: [6, 24] } }).tensors[0] ?? {};
    const { pieces, bytes, tensors: count } = held(tensors, { [K]: { offset: [3, 0], global_shape: [6, 24] } });
    const expected = [
      { tensor: index(NORM), firstRow: 0, rows: 24, offset: start },
      { tensor: index(K), firstRow: 3, rows: 2, offset: (start ?? 0) + 48 },
      { tensor: index(Q), firstRow: 0, rows: 24, offset: (start ?? 0) + 48 + 96 },
    ];
    expect(pieces).toEqual(expected.sort((a, b) => a.tensor - b.tensor));
    expect([bytes, count]).toEqual([48 + 96 + 1152, 3]);
  });

  it("may have the names of a wrapped model, those of its row ranges too, and is the same bucket by them", () => {
    const plain = held({ [Q]: BF16(2, 24), [NORM]: BF16(24) }, { [Q]: { offset: [3, 0], global_shape: [24, 24] } });
    const wrapped = held(
      { [`module.${Q}`]: BF16(2, 24), [`module.${NORM}`]: BF16(24) },
      { [`module.${Q}`]: { offset: [3, 0], global_shape: [24, 24] } },
    );
    expect(plain.warning).toBeNull();
    expect(wrapped.warning).toMatchObject({ code: "names_unwrapped", message: expect.stringContaining('"module."') });
    const rows = (pieces: typeof plain.pieces) =>
      pieces.map(({ tensor, firstRow, rows: count }) => [tensor, firstRow, count]);
    expect(rows(wrapped.pieces)).toEqual(rows(plain.pieces));
    expect(wrapped.contentKey).toBe(plain.contentKey);
    expect(held({ [Q.replace("model.", "")]: BF16(24, 24) }).pieces).toHaveLength(1);
    expect(held({ [Q.replace(".weight", ".base_layer.weight")]: BF16(24, 24) }).pieces).toHaveLength(1);
  });

  it("with a prefix that no rule takes off is refused with it, and so are names of which only some have one", () => {
    const details = refused(
      { [`policy.${Q}`]: BF16(24, 24) },
      undefined,
      "tensor_unexpected",
      /under the prefix "policy\."/,
    );
    expect(details).toMatchObject({ prefix: "policy." });
    refused({ [`module.${Q}`]: BF16(24, 24), [NORM]: BF16(24) }, undefined, "tensor_unexpected", /prefix "module\."/);
    refused({ [Q.replace(".weight", ".lora_A.weight")]: BF16(8, 24) }, undefined, "tensor_unexpected", /adapter/);
  });

  it("of no rows brings none, and is none the worse", () => {
    const { pieces, tensors } = held({ [Q]: BF16(0, 24) }, { [Q]: { offset: [24, 0], global_shape: [24, 24] } });
    expect([pieces, tensors]).toEqual([[], 1]);
  });

  it("brings rows of the first dimension, a vector's too", () => {
    const { pieces } = held({ [NORM]: BF16(4) }, { [NORM]: { offset: [20], global_shape: [24] } });
    expect(pieces).toMatchObject([{ tensor: index(NORM), firstRow: 20, rows: 4 }]);
  });

  it("may hold what the family skips: rotary tables, and an lm_head that is tied", () => {
    const tied = expectedOf({ tie_word_embeddings: true });
    const rotary = "model.layers.0.self_attn.rotary_emb.inv_freq";
    const tensors = { "lm_head.weight": BF16(100, 24), [rotary]: { ...BF16(2), dtype: "F32" as const } };
    const { pieces, tensors: count } = held({ ...tensors, [NORM]: BF16(24) }, undefined, tied);
    expect(pieces).toMatchObject([{ tensor: index(NORM, tied) }]);
    expect([pieces.length, count]).toEqual([1, 3]);
  });

  it("is known by what it holds: not by its file, nor by the order or by how the rows are said", () => {
    const key = (tensors: Record<string, BuiltTensor>, ranges?: unknown) => held(tensors, ranges).contentKey;
    const both = key({ [Q]: BF16(24, 24), [NORM]: BF16(24) });
    expect(key({ [NORM]: BF16(24), [Q]: { ...BF16(24, 24), bytes: new Uint8Array(1152) } })).toBe(both);
    expect(key({ [Q]: BF16(24, 24), [NORM]: BF16(24) }, { [NORM]: { offset: [0], global_shape: [24] } })).toBe(both);
    const others = [
      key({ [Q]: BF16(24, 24) }),
      key({ [Q]: BF16(12, 24) }, { [Q]: { offset: [0, 0], global_shape: [24, 24] } }),
      key({ [Q]: BF16(12, 24) }, { [Q]: { offset: [12, 0], global_shape: [24, 24] } }),
    ];
    expect(new Set([both, ...others]).size).toBe(4);
  });

  it("holds at least one tensor", () => {
    refused({}, undefined, "checkpoint_invalid", /^bucket 7 holds no tensors/);
  });
});

describe("a tensor is refused by its name", () => {
  it("when the push was planned without it", () => {
    const details = refused(
      { [NORM]: BF16(24), "model.extra": BF16(1) },
      undefined,
      "tensor_unexpected",
      /^"model\.extra" is not /,
    );
    expect(details).toEqual({ tensors: ["model.extra"] });
  });

  it("when its like is in another model", () => {
    const name = "model.layers.1.self_attn.q_norm.weight";
    const details = refused({ [name]: BF16(3) }, undefined, "tensor_unexpected", /q_norm\.weight" is not one of/);
    expect(details).toEqual({ tensors: [name] });
  });

  it("when its dtype is another, even where it has as many bits", () => {
    const tensors = { [NORM]: { dtype: "F16" as const, shape: [24] } };
    const details = refused(tensors, undefined, "dtype_mismatch", /^model\.norm\.weight is F16; .* planned with BF16/);
    expect(details).toEqual({ tensor: NORM, expected: "BF16", found: "F16" });
  });

  it("may be of any float dtype where values are rounded, which its pieces then say", () => {
    const rounded = { ...EXPECTED, mayDiffer: (tensor: number) => tensor !== index(Q) };
    const [wide, half] = [
      { dtype: "F32" as const, shape: [24] },
      { dtype: "F16" as const, shape: [6, 24] },
    ];
    const { pieces } = held({ [NORM]: wide, [K]: half, [Q]: BF16(24, 24) }, undefined, rounded);
    expect(new Map(pieces.map(({ tensor, dtype }) => [tensor, dtype]))).toEqual(
      new Map([
        [index(Q), undefined],
        [index(K), "F16"],
        [index(NORM), "F32"],
      ]),
    );
    const wrong = [
      { [Q]: { dtype: "F32" as const, shape: [24, 24] } },
      { [NORM]: { dtype: "I32" as const, shape: [24] } },
    ];
    for (const tensors of wrong)
      expectLayercastError(
        () => held(tensors, undefined, rounded),
        "dtype_mismatch",
        /planned with BF16.* dtype: bfloat16 /,
      );
  });

  it.each([
    ["transposed", BF16(24, 6)],
    ["of fewer rows, which are not said to be rows", BF16(3, 24)],
    ["flat", BF16(144)],
    ["with a dimension more", BF16(1, 6, 24)],
  ])("when it is %s", (_how, tensor) => {
    const details = refused(
      { [K]: tensor },
      undefined,
      "shape_mismatch",
      /k_proj\.weight has shape .* planned with \[6, 24\]/,
    );
    expect(details).toEqual({ tensor: K, expected: [6, 24], found: tensor.shape });
  });

  it("when its rows are of a tensor of another shape", () => {
    const ranges = { [K]: { offset: [0, 0], global_shape: [8, 24] } };
    const details = refused({ [K]: BF16(2, 24) }, ranges, "shape_mismatch", /has shape \[8, 24\]/);
    expect(details).toEqual({ tensor: K, expected: [6, 24], found: [8, 24] });
  });
});

describe("row ranges are refused by the tensor's name", () => {
  const of = (range: unknown) => ({ [K]: range });
  it.each([
    ["that ends beyond the tensor", of({ offset: [5, 0], global_shape: [6, 24] }), /ends at row 7 of 6/],
    ["that is a part of the second dimension", of({ offset: [0, 1], global_shape: [6, 24] }), /first dimension alone/],
    ["of a tensor that is wider", of({ offset: [0, 0], global_shape: [6, 48] }), /first dimension alone/],
    ["without an offset", of({ global_shape: [6, 24] }), /each of 2 whole numbers/],
    ["without a shape", of({ offset: [0, 0] }), /each of 2 whole numbers/],
    ["of one dimension", of({ offset: [0], global_shape: [6] }), /each of 2 whole numbers/],
    ["before the first row", of({ offset: [-1, 0], global_shape: [6, 24] }), /each of 2 whole numbers/],
    ["at half a row", of({ offset: [0.5, 0], global_shape: [6, 24] }), /each of 2 whole numbers/],
    ["in words", of({ offset: ["0", "0"], global_shape: [6, 24] }), /each of 2 whole numbers/],
    ["that is a list", of([0, 2]), /is not an object/],
  ])("one %s", (_how, ranges, sentence) => {
    const details = refused({ [K]: BF16(2, 24) }, ranges, "checkpoint_invalid", sentence);
    expect(details).toEqual({ file: "bucket 7", tensor: K });
  });

  it("one of a tensor that is not in the bucket", () => {
    const ranges = { [Q]: { offset: [0, 0], global_shape: [24, 24] } };
    expect(refused({ [NORM]: BF16(24) }, ranges, "checkpoint_invalid", /is not a tensor of it/)).toEqual({
      file: "bucket 7",
      tensor: Q,
    });
  });

  it.each(["[]", "7", "null", "{", '{"a": 1, "a": 2}'])("metadata that is %s", (text) => {
    const details = refused(
      { [NORM]: BF16(24) },
      text,
      "checkpoint_invalid",
      /that is not a JSON object\. Write it as/,
    );
    expect(details).toEqual({ file: "bucket 7" });
  });
});
