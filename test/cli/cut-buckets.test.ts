import { describe, expect, it } from "vitest";
import { parseSafetensorsHeader } from "../../orchestrator/checkpoint/safetensors-header.js";
import {
  type BucketCut,
  bucketBytes,
  bucketHeader,
  type CutBucket,
  cutBuckets,
  PUSH_ORDERS,
  partRange,
  type StoredTensor,
} from "../../orchestrator/cli/cut-buckets.js";
import type { FormatDType } from "../../orchestrator/contract/dtype.js";
import { ROW_RANGES_KEY } from "../../orchestrator/contract/push.js";

function stored(name: string, shape: number[], dtype: FormatDType = "BF16"): StoredTensor {
  return { name, dtype, shape, path: `/${name}`, offset: 100 };
}

const EMBED = stored("embed", [10, 4]);
const GATE = stored("gate", [6, 8]);
const NORM = stored("norm", [4], "F32");
const SCALE = stored("scale", [], "F32");
const EMPTY = stored("empty", [0, 4]);
const TENSORS = [EMBED, GATE, NORM, SCALE, EMPTY];
const WHOLE: BucketCut = { order: "checkpoint", seed: 0, bucketBytes: 2 ** 40, rows: null };

const namesOf = (buckets: readonly CutBucket[]) => buckets.map((bucket) => bucket.map(({ tensor }) => tensor.name));

describe("the buckets of a checkpoint", () => {
  it("hold every row of every tensor once, whatever the order, the size and the rows", () => {
    for (const order of PUSH_ORDERS) {
      for (const rows of [null, 1, 3, 100]) {
        for (const size of [1, 64, 2 ** 40]) {
          const names = TENSORS.map(({ name }) => name);
          const parts = cutBuckets(TENSORS, names, { order, seed: 7, bucketBytes: size, rows }).flat();
          for (const tensor of TENSORS) {
            const own = parts.filter((part) => part.tensor === tensor).sort((a, b) => a.firstRow - b.firstRow);
            const covered = own.reduce((end, part) => (part.firstRow === end ? end + part.rows : Number.NaN), 0);
            expect(own.length).toBeGreaterThan(0);
            expect(covered).toBe(tensor.shape[0] ?? 1);
          }
        }
      }
    }
  });

  it("never hold a tensor twice, nor more bytes than allowed unless one part has them", () => {
    for (const order of PUSH_ORDERS) {
      for (const bucket of cutBuckets(TENSORS, [], { order, seed: 3, bucketBytes: 100, rows: 2 })) {
        const names = bucket.map(({ tensor }) => tensor.name);
        expect(new Set(names).size).toBe(names.length);
        if (bucket.length > 1) expect(bucketBytes(bucket)).toBeLessThanOrEqual(100);
      }
    }
  });

  it("have a part no more rows than allowed, and a scalar whole", () => {
    const parts = cutBuckets(TENSORS, [], { ...WHOLE, rows: 4 }).flat();
    const rowsOf = (tensor: StoredTensor) => parts.filter((part) => part.tensor === tensor).map(({ rows }) => rows);
    expect([EMBED, GATE, SCALE, EMPTY].map(rowsOf)).toEqual([[4, 4, 2], [4, 2], [1], [0]]);
  });

  it("follow the checkpoint, or the modules without what none needs", () => {
    expect(namesOf(cutBuckets(TENSORS, [], WHOLE))).toEqual([["embed", "gate", "norm", "scale", "empty"]]);
    const byModule = cutBuckets(TENSORS, ["norm", "not stored", "embed"], {
      ...WHOLE,
      order: "module",
      bucketBytes: 1,
    });
    expect(namesOf(byModule)).toEqual([["norm"], ["embed"]]);
  });

  it("follow from the seed when they are at random", () => {
    const many = Array.from({ length: 50 }, (_, index) => stored(`t${index}`, [1, 1]));
    const drawn = (seed: number) => namesOf(cutBuckets(many, [], { ...WHOLE, order: "random", seed })).flat();
    expect(drawn(1)).toEqual(drawn(1));
    expect(drawn(1)).not.toEqual(drawn(2));
    expect(drawn(1).toSorted()).toEqual(many.map(({ name }) => name).toSorted());
  });

  it("do not cut a tensor of a dtype whose rows end within a byte", () => {
    const packed = stored("packed", [4, 3], "F4");
    expect(cutBuckets([packed], [], { ...WHOLE, rows: 1 }).flat()).toEqual([{ tensor: packed, firstRow: 0, rows: 4 }]);
  });
});

describe("the header of a bucket", () => {
  const read = (bucket: CutBucket) => {
    const header = bucketHeader(bucket);
    return parseSafetensorsHeader(header, header.byteLength + bucketBytes(bucket));
  };

  it("is that of a safetensors file with the parts in the bucket's order", () => {
    const [bucket = []] = cutBuckets(TENSORS, [], { ...WHOLE, order: "random", seed: 5 });
    const { tensors, metadata, dataOffset } = read(bucket);
    expect(dataOffset % 8).toBe(0);
    expect(metadata.size).toBe(0);
    const expected = bucket.map(({ tensor: { name, dtype, shape } }) => ({ name, dtype, shape }));
    const found = tensors.map(({ name, dtype, shape }) => ({ name, dtype, shape }));
    expect(found.toSorted((a, b) => (a.name < b.name ? -1 : 1))).toEqual(
      expected.toSorted((a, b) => (a.name < b.name ? -1 : 1)),
    );
    let end = dataOffset;
    for (const part of bucket) {
      expect(tensors.find(({ name }) => name === part.tensor.name)?.offset).toBe(end);
      end += partRange(part).sizeBytes;
    }
  });

  it("says of parts, and of no others, where they belong", () => {
    const { tensors, metadata } = read([
      { tensor: EMBED, firstRow: 3, rows: 4 },
      { tensor: NORM, firstRow: 0, rows: 4 },
    ]);
    expect(tensors.map(({ shape }) => shape)).toEqual([[4, 4], [4]]);
    expect(JSON.parse(metadata.get(ROW_RANGES_KEY) ?? "")).toEqual({
      embed: { offset: [3, 0], global_shape: [10, 4] },
    });
  });

  it("goes with the bytes that the file has of the part", () => {
    expect(partRange({ tensor: EMBED, firstRow: 3, rows: 4 })).toEqual({ offset: 100 + 3 * 8, sizeBytes: 4 * 8 });
    expect(partRange({ tensor: SCALE, firstRow: 0, rows: 1 })).toEqual({ offset: 100, sizeBytes: 4 });
  });
});
