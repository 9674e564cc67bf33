// Row ranges are sets of rows: every operation against plain sets, in the one form that ranges have.

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  commonRows,
  coversRows,
  joinRows,
  moveRows,
  NO_ROWS,
  type RowRange,
  type RowRanges,
  rowCount,
  withoutRows,
} from "../../orchestrator/program/row-ranges.js";

const ROWS = 24;
const allRows = Array.from({ length: ROWS }, (_, row) => row);

/** The ranges of a set, sorted, none of them empty, none touching another. */
function rangesOf(rows: ReadonlySet<number>): RowRanges {
  const starts = allRows.filter((row) => rows.has(row) && !rows.has(row - 1));
  return starts.map((from) => {
    let to = from;
    while (rows.has(to)) to += 1;
    return { from, to };
  });
}

function setOf(ranges: RowRanges): Set<number> {
  return new Set(ranges.flatMap(({ from, to }) => Array.from({ length: to - from }, (_, at) => from + at)));
}

const someRows = fc.uniqueArray(fc.nat(ROWS - 1)).map((rows) => new Set(rows));
const aRange: fc.Arbitrary<RowRange> = fc.tuple(fc.nat(ROWS), fc.nat(6)).map(([from, rows]) => ({
  from,
  to: Math.min(ROWS, from + rows),
}));

/** For two sets in their ranges; neither may be changed. */
function forAnyTwo(
  law: (a: RowRanges, b: RowRanges, inA: ReadonlySet<number>, inB: ReadonlySet<number>) => void,
): void {
  fc.assert(
    fc.property(someRows, someRows, (inA, inB) => {
      const [a, b] = [rangesOf(inA), rangesOf(inB)].map((ranges) => Object.freeze(ranges.map(Object.freeze))) as [
        RowRanges,
        RowRanges,
      ];
      law(a, b, inA, inB);
    }),
    { numRuns: 500 },
  );
}

describe("row ranges", () => {
  it("joined have what is in either, however it touches", () => {
    forAnyTwo((a, b, inA, inB) => expect(joinRows(a, b)).toEqual(rangesOf(new Set([...inA, ...inB]))));
  });

  it("without others have what is in the first alone", () => {
    forAnyTwo((a, b, inA, inB) =>
      expect(withoutRows(a, b)).toEqual(rangesOf(new Set([...inA].filter((row) => !inB.has(row))))),
    );
  });

  it("in common have what is in both", () => {
    forAnyTwo((a, b, inA, inB) =>
      expect(commonRows(a, b)).toEqual(rangesOf(new Set([...inA].filter((row) => inB.has(row))))),
    );
  });

  it("are counted by row, and cover a range when each of its rows is theirs", () => {
    fc.assert(
      fc.property(someRows, aRange, (rows, range) => {
        const ranges = rangesOf(rows);
        expect(rowCount(ranges)).toBe(rows.size);
        expect(coversRows(ranges, range)).toBe([...setOf([range])].every((row) => rows.has(row)));
      }),
      { numRuns: 500 },
    );
  });

  it("moved are the same rows elsewhere, and moved back the same", () => {
    fc.assert(
      fc.property(someRows, fc.integer({ min: -9, max: 9 }), (rows, by) => {
        const moved = moveRows(rangesOf(rows), by);
        expect(setOf(moved)).toEqual(new Set([...rows].map((row) => row + by)));
        expect(moveRows(moved, -by)).toEqual(rangesOf(rows));
      }),
    );
  });

  it("are one range once all has come, in whatever pieces and order", () => {
    const shuffled = fc
      .uniqueArray(fc.integer({ min: 1, max: ROWS - 1 }))
      .map((cuts) => [0, ...cuts.sort((a, b) => a - b), ROWS])
      .map((edges) => edges.slice(1).map((to, at) => ({ from: edges[at] ?? 0, to })))
      .chain((pieces) => fc.shuffledSubarray(pieces, { minLength: pieces.length }));
    fc.assert(
      fc.property(shuffled, (pieces) => {
        const joined = pieces.reduce<RowRanges>((ranges, piece) => joinRows(ranges, [piece]), NO_ROWS);
        expect(joined).toEqual([{ from: 0, to: ROWS }]);
      }),
    );
  });
});
