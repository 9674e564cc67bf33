import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { compareTensors, type Golden, readTensorDigests } from "../../orchestrator/cli/compare-tensors.js";

let scratch: string;
beforeAll(() => {
  scratch = mkdtempSync(join(tmpdir(), "layercast-compare-"));
});
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

function writeSafetensors(name: string, header: object, tensorBytes: string): string {
  const json = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  const path = join(scratch, name);
  writeFileSync(path, Buffer.concat([length, json, Buffer.from(tensorBytes)]));
  return path;
}

const HEADER = {
  __metadata__: { format: "pt" },
  b: { dtype: "U8", shape: [3], data_offsets: [0, 3] },
  a: { dtype: "F32", shape: [], data_offsets: [3, 3] },
};
// printf abc | sha256sum; printf '' | sha256sum
const ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

describe("the check against known digests", () => {
  it("reads every tensor's dtype, shape and bytes", async () => {
    expect(await readTensorDigests(writeSafetensors("whole", HEADER, "abc"))).toEqual({
      a: ["F32", [], EMPTY],
      b: ["U8", [3], ABC],
    });
  });

  it("refuses a file that ends too soon", async () => {
    await expect(readTensorDigests(writeSafetensors("cut", HEADER, "ab"))).rejects.toThrow(/1 short/);
  });

  it("finds a missing, an unexpected and a changed tensor, by dtype, shape and bytes", () => {
    const expected: Golden = { a: ["F32", [1], ABC], b: ["U8", [3], ABC], c: ["U8", [3], ABC], d: ["U8", [3], ABC] };
    const found: Golden = { a: ["F32", [], ABC], b: ["I8", [3], ABC], d: ["U8", [3], EMPTY], e: ["U8", [3], ABC] };
    const { matched, differences } = compareTensors(found, expected);
    expect(matched).toBe(0);
    expect(differences).toEqual([
      `a is ["F32",[],"${ABC}"], expected ["F32",[1],"${ABC}"]`,
      `b is ["I8",[3],"${ABC}"], expected ["U8",[3],"${ABC}"]`,
      "c is missing",
      `d is ["U8",[3],"${EMPTY}"], expected ["U8",[3],"${ABC}"]`,
      "e is not expected",
    ]);
    expect(compareTensors(expected, expected)).toEqual({ matched: 4, differences: [] });
  });
});
