// Sets of rows as sorted, disjoint, half-open ranges: what has come of a tensor, what is still missing. Values, never changed.

/** [from, to). */
export interface RowRange {
  readonly from: number;
  readonly to: number;
}

export type RowRanges = readonly RowRange[];

export const NO_ROWS: RowRanges = [];

export function rowCount(ranges: RowRanges): number {
  return ranges.reduce((sum, { from, to }) => sum + to - from, 0);
}

/** What is in either. */
export function joinRows(one: RowRanges, other: RowRanges): RowRanges {
  if (one.length === 0) return other;
  if (other.length === 0) return one;
  const joined: { from: number; to: number }[] = [];
  for (const range of [...one, ...other].sort((a, b) => a.from - b.from)) {
    const last = joined.at(-1);
    if (last !== undefined && range.from <= last.to) last.to = Math.max(last.to, range.to);
    else joined.push({ ...range });
  }
  return joined;
}

/** What is in the first and not in the second. */
export function withoutRows(ranges: RowRanges, taken: RowRanges): RowRanges {
  if (taken.length === 0) return ranges;
  const left: RowRange[] = [];
  for (const { from, to } of ranges) {
    let next = from;
    for (const hole of taken) {
      if (hole.to <= next || hole.from >= to) continue;
      if (hole.from > next) left.push({ from: next, to: hole.from });
      next = hole.to;
    }
    if (next < to) left.push({ from: next, to });
  }
  return left;
}

/** What is in both. */
export function commonRows(one: RowRanges, other: RowRanges): RowRanges {
  const common: RowRange[] = [];
  for (const a of one) {
    for (const b of other) {
      const [from, to] = [Math.max(a.from, b.from), Math.min(a.to, b.to)];
      if (from < to) common.push({ from, to });
    }
  }
  return common;
}

export function moveRows(ranges: RowRanges, by: number): RowRanges {
  return by === 0 ? ranges : ranges.map(({ from, to }) => ({ from: from + by, to: to + by }));
}

export function coversRows(ranges: RowRanges, { from, to }: RowRange): boolean {
  return from >= to || ranges.some((range) => range.from <= from && to <= range.to);
}
