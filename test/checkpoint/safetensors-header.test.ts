import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { MAX_HEADER_BYTES, parseSafetensorsHeader } from "../../orchestrator/checkpoint/safetensors-header.js";
import { FORMAT_DTYPE_BITS, type FormatDType } from "../../orchestrator/contract/dtype.js";
import { buildSafetensors, withHeader } from "./build-safetensors.js";
import { expectLayercastError } from "./expect-error.js";

const parse = (file: Uint8Array) => parseSafetensorsHeader(file, file.byteLength, "/ckpt/a.safetensors");
const withLength = (length: bigint, restBytes: number) => {
  const file = new Uint8Array(8 + restBytes);
  new DataView(file.buffer).setBigUint64(0, length, true);
  return file;
};
const entry = (dtype: string, shape: string, offsets: string) =>
  `{"dtype":"${dtype}","shape":${shape},"data_offsets":${offsets}}`;
const bf16 = (begin: number, end: number) => entry("BF16", `[${(end - begin) / 2}]`, `[${begin},${end}]`);

const HOSTILE: [law: string, file: Uint8Array, sentence: RegExp][] = [
  ["an empty file", new Uint8Array(0), /has 0 bytes, too few/],
  ["a file shorter than the length", new Uint8Array(7), /has 7 bytes, too few/],
  ["a length past the end of the file", withLength(100n, 20), /header has 100 bytes, but the whole file has 28/],
  ["a length over the limit", withLength(BigInt(MAX_HEADER_BYTES) + 1n, 20), /more than the 100000000 allowed/],
  ["a length of 2^64 - 1", withLength(2n ** 64n - 1n, 20), /header has 18446744073709551615 bytes/],
  ["an empty header", withHeader(""), /does not begin with an opening brace/],
  ["a header that is not UTF-8", withHeader(Uint8Array.of(0x7b, 0x22, 0xff, 0xfe, 0x22, 0x7d)), /is not UTF-8/],
  ["a byte order mark", withHeader("\ufeff{}"), /does not begin with an opening brace/],
  ["white space before the brace", withHeader(" {}"), /does not begin with an opening brace/],
  ["a header that is a list", withHeader("[]"), /does not begin with an opening brace/],
  ["a header that stops", withHeader('{"a":'), /a value is expected at character 5/],
  ["a string that stops", withHeader('{"a'), /a string has no end/],
  ["a comma too many", withHeader(`{"a":${bf16(0, 4)},}`, 4), /a name in quotes is expected/],
  ["text after the object", withHeader(`{"a":${bf16(0, 4)}} x`, 4), /more after the end/],
  ["zeros as padding", withHeader(`{"a":${bf16(0, 4)}}\0\0`, 4), /more after the end/],
  ["a name twice", withHeader(`{"a":${bf16(0, 4)},"a":${bf16(4, 8)}}`, 8), /"a" is given twice/],
  ["a name twice, once escaped", withHeader(`{"a":${bf16(0, 4)},"\\u0061":${bf16(4, 8)}}`, 8), /"a" is given twice/],
  ["a field twice", withHeader('{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}'), /given twice/],
  ["a control character in a name", withHeader(`{"a\u0001":${bf16(0, 4)}}`, 4), /control character/],
  ["half a surrogate pair", withHeader(`{"\\ud800":${bf16(0, 4)}}`, 4), /half a surrogate pair/],
  ["an escape that does not exist", withHeader(`{"\\x":${bf16(0, 4)}}`, 4), /escape that does not exist/],
  ["nesting without end", withHeader(`{"a":${"[".repeat(100_000)}`), /nesting is deeper/],
  ["metadata that is a list", withHeader('{"__metadata__":[]}'), /__metadata__ that is not an object/],
  ["metadata that is not text", withHeader('{"__metadata__":{"a":1}}'), /whose "a" is not a string/],
  ["metadata twice", withHeader('{"__metadata__":{},"__metadata__":{}}'), /given twice/],
  ["a tensor that is null", withHeader('{"a":null}'), /"a" that is not an object/],
  ["an unknown dtype", withHeader(`{"a":${entry("BF17", "[2]", "[0,4]")}}`, 4), /"a" of dtype "BF17"/],
  ["a dtype that every object has", withHeader(`{"a":${entry("toString", "[2]", "[0,4]")}}`, 4), /"toString"/],
  ["no dtype", withHeader('{"a":{"shape":[2],"data_offsets":[0,4]}}', 4), /of dtype missing/],
  ["no shape", withHeader('{"a":{"dtype":"BF16","data_offsets":[0,4]}}', 4), /shape is not a list/],
  ["a negative dimension", withHeader(`{"a":${entry("BF16", "[-2]", "[0,4]")}}`, 4), /shape is not a list/],
  ["minus zero", withHeader(`{"a":${entry("BF16", "[-0]", "[0,0]")}}`), /shape is not a list/],
  ["a fraction", withHeader(`{"a":${entry("BF16", "[2.0]", "[0,4]")}}`, 4), /shape is not a list/],
  ["an exponent", withHeader(`{"a":${entry("BF16", "[2e0]", "[0,4]")}}`, 4), /shape is not a list/],
  ["a dimension beyond 2^53", withHeader(`{"a":${entry("U8", "[9007199254740993]", "[0,0]")}}`), /shape is not a list/],
  ["a product beyond 2^53", withHeader(`{"a":${entry("U8", "[94906267,94906267]", "[0,4]")}}`, 4), /below 2\^53/],
  ["a product of bytes beyond 2^53", withHeader(`{"a":${entry("F64", "[9007199254740991]", "[0,4]")}}`, 4), /2\^53/],
  [
    "a product that overflows before a zero",
    withHeader(`{"a":${entry("U8", "[94906267,94906267,0]", "[0,0]")}}`),
    /53/,
  ],
  ["a size other than the bytes", withHeader(`{"a":${entry("BF16", "[3]", "[0,4]")}}`, 4), /takes 6 bytes, but has 4/],
  ["half a byte", withHeader(`{"a":${entry("F4", "[3]", "[0,1]")}}`, 1), /no size in bytes/],
  ["one offset", withHeader(`{"a":${entry("BF16", "[2]", "[0]")}}`, 4), /data_offsets are not two/],
  ["three offsets", withHeader(`{"a":${entry("BF16", "[2]", "[0,4,8]")}}`, 4), /data_offsets are not two/],
  ["offsets as text", withHeader(`{"a":${entry("BF16", "[2]", '["0","4"]')}}`, 4), /data_offsets are not two/],
  ["begin after end", withHeader(`{"a":${entry("BF16", "[2]", "[4,0]")}}`, 4), /begin at 4, after their end at 0/],
  [
    "an end past the file",
    withHeader(`{"a":${bf16(0, 4)},"b":${bf16(4, 8)}}`, 6),
    /"b".* end at 8, past .* 6 .*truncated/,
  ],
  ["an end beyond 2^53", withHeader(`{"a":${entry("BF16", "[2]", "[0,9007199254740992]")}}`, 4), /data_offsets/],
  ["an overlap", withHeader(`{"a":${bf16(0, 4)},"b":${bf16(2, 6)}}`, 6), /"a" and "b" share 2 bytes/],
  ["the same bytes twice", withHeader(`{"a":${bf16(0, 4)},"b":${bf16(0, 4)}}`, 4), /overlap: "a" and "b" share 4/],
  ["a hole", withHeader(`{"a":${bf16(0, 4)},"b":${bf16(8, 12)}}`, 12), /hole of 4 bytes between "a" and "b"/],
  ["a hole before the first tensor", withHeader(`{"a":${bf16(4, 8)}}`, 8), /hole of 4 bytes/],
  ["a tail of no tensor", withHeader(`{"a":${bf16(0, 4)}}`, 9), /has 5 bytes after its last tensor/],
  ["data without tensors", withHeader("{}", 3), /has 3 bytes after its last tensor/],
];

describe("parseSafetensorsHeader", () => {
  it.each(HOSTILE)("refuses %s as checkpoint_invalid, naming the file", (_, file, sentence) => {
    const error = expectLayercastError(() => parse(file), "checkpoint_invalid", sentence);
    expect(error.message).toContain("/ckpt/a.safetensors");
  });

  it("gives every tensor's dtype, shape and absolute offset in the order of the bytes", () => {
    const file = withHeader(`{"b":${bf16(4, 10)},"__metadata__":{"format":"pt"},"a":${bf16(0, 4)}}   `, 10);
    const { tensors, metadata, dataOffset } = parse(file);
    expect(tensors).toEqual([
      { name: "a", dtype: "BF16", shape: [2], offset: dataOffset, sizeBytes: 4 },
      { name: "b", dtype: "BF16", shape: [3], offset: dataOffset + 4, sizeBytes: 6 },
    ]);
    expect([...metadata]).toEqual([["format", "pt"]]);
    expect(dataOffset).toBe(file.byteLength - 10);
  });

  it("knows every dtype of the format and its size", () => {
    const dtypes = Object.keys(FORMAT_DTYPE_BITS) as FormatDType[];
    const file = buildSafetensors(Object.fromEntries(dtypes.map((dtype) => [dtype, { dtype, shape: [2, 4] }])));
    for (const { dtype, sizeBytes } of parse(file).tensors) expect(sizeBytes).toBe(FORMAT_DTYPE_BITS[dtype]);
  });

  it("accepts scalars, tensors without elements beside others, and a file without tensors", () => {
    const file = withHeader(
      `{"z":${bf16(0, 4)},"e":${entry("F32", "[0,7]", "[0,0]")},"s":${entry("F32", "[]", "[4,8]")}}`,
      8,
    );
    expect(parse(file).tensors.map(({ name }) => name)).toEqual(["e", "z", "s"]);
    expect(parse(withHeader("{}")).tensors).toEqual([]);
  });

  it("takes names that are special to JavaScript as plain names", () => {
    const names = ["__proto__", "constructor", "toString", ""];
    const entries = names.map((name, index) => `"${name}":${bf16(index * 2, index * 2 + 2)}`);
    expect(parse(withHeader(`{${entries.join(",")}}`, 8)).tensors.map(({ name }) => name)).toEqual(names);
    expect(({} as Record<string, unknown>).dtype).toBeUndefined();
  });

  it("cuts a stranger's long name in its sentence", () => {
    const name = "x".repeat(1_000_000);
    const error = expectLayercastError(() => parse(withHeader(`{"${name}":null}`)), "checkpoint_invalid", /x…/);
    expect(error.message.length).toBeLessThan(500);
  });

  it("never throws anything but checkpoint_invalid, whatever bytes are changed", () => {
    const right = buildSafetensors({ a: { dtype: "BF16", shape: [2, 3] }, b: { dtype: "F32", shape: [] } }, { k: "v" });
    const change = fc.tuple(fc.nat(right.byteLength - 1), fc.nat(255));
    fc.assert(
      fc.property(fc.array(change, { minLength: 1, maxLength: 4 }), fc.nat(right.byteLength), (changes, cut) => {
        const file = right.slice(0, cut < right.byteLength / 2 ? right.byteLength : cut);
        for (const [at, value] of changes) if (at < file.byteLength) file[at] = value;
        try {
          const { tensors } = parse(file);
          const covered = tensors.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
          const jsonBytes = Number(new DataView(file.buffer, file.byteOffset).getBigUint64(0, true));
          expect(covered).toBe(file.byteLength - 8 - jsonBytes);
        } catch (error) {
          expect(error).toMatchObject({ code: "checkpoint_invalid" });
        }
      }),
      { numRuns: 3000 },
    );
  });

  it("reads the header of 90,000 tensors, 10 MB, in a second or so", () => {
    const tensors = Array.from({ length: 90_000 }, (_, index): [string, string] => [
      `model.layers.${index % 61}.mlp.experts.${index}.gate_proj.weight.padded.to.a.length`,
      bf16(index * 2, index * 2 + 2),
    ]);
    const file = withHeader(`{${tensors.map(([name, value]) => `"${name}": ${value}`).join(", ")}}`, 180_000);
    const startMs = performance.now();
    expect(parse(file).tensors).toHaveLength(90_000);
    // A quadratic scan would take minutes.
    expect(performance.now() - startMs).toBeLessThan(5_000);
  });
});
