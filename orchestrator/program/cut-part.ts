// The partition rules as arithmetic: which rectangle of a part a rank takes, how many rows of the rank's kernel tensor that
// makes, and what must divide for it. Everything else that needs to know a rule asks here.

import type { Part, PartRule } from "../contract/plan.js";

/** What of a part decides how it is cut. */
export interface CutSpec {
  /** A vector of n is n rows of 1 column, a scalar 1 by 1. */
  rows: number;
  cols: number;
  rule: PartRule;
  /** What must divide by the tensor-parallel size, beyond the rule's own rows or columns. */
  units?: { count: number; field: string };
}

/** A rectangle of the whole part, and the zeros that are below it and to its right in the rank's tensor. */
export interface Cut {
  row: number;
  rows: number;
  col: number;
  cols: number;
  zeroRows: number;
  zeroCols: number;
}

export function cutPart(part: Pick<Part, "rows" | "cols" | "rule" | "padTo">, rank: number, ranks: number): Cut {
  const cut = unpaddedCut(part, rank, ranks);
  if (part.padTo === 1) return cut;
  const missing = (size: number) => Math.ceil(size / part.padTo) * part.padTo - size;
  return { ...cut, zeroRows: cut.zeroRows + missing(cut.rows + cut.zeroRows), zeroCols: missing(cut.cols) };
}

function unpaddedCut({ rows, cols, rule }: Pick<Part, "rows" | "cols" | "rule">, rank: number, ranks: number): Cut {
  switch (rule.kind) {
    case "replicate":
      return { row: 0, rows, col: 0, cols, zeroRows: 0, zeroCols: 0 };
    case "rows":
      return { row: (rank * rows) / ranks, rows: rows / ranks, col: 0, cols, zeroRows: 0, zeroCols: 0 };
    case "columns":
      return { row: 0, rows, col: (rank * cols) / ranks, cols: cols / ranks, zeroRows: 0, zeroCols: 0 };
    case "kv_heads": {
      const headRows = rows / rule.heads;
      const heads = Math.max(1, rule.heads / ranks);
      const head = Math.floor((rank * rule.heads) / ranks);
      return { row: head * headRows, rows: heads * headRows, col: 0, cols, zeroRows: 0, zeroCols: 0 };
    }
    case "vocabulary": {
      const local = rule.paddedRows / ranks;
      const row = Math.min(rank * local, rows);
      const present = Math.min(row + local, rows) - row;
      return { row, rows: present, col: 0, cols, zeroRows: local - present, zeroCols: 0 };
    }
    default:
      return rule satisfies never;
  }
}

/** How many ranks hold each element of the part. */
export function replicasOf({ rule }: { rule: PartRule }, ranks: number): number {
  if (rule.kind === "replicate") return ranks;
  return rule.kind === "kv_heads" ? Math.max(1, ranks / rule.heads) : 1;
}

/** The size that keeps `ranks` ranks from sharing the part; null: nothing does. */
export function indivisibleSize(part: CutSpec, ranks: number): { field: string; size: number } | null {
  const { rule, units, rows, cols } = part;
  if (rule.kind === "replicate") return null;
  const kvReplicated = rule.kind === "kv_heads" && ranks % rule.heads === 0;
  if (units !== undefined && units.count % ranks !== 0 && !kvReplicated)
    return { field: units.field, size: units.count };
  if (rule.kind === "rows" && rows % ranks !== 0) return { field: "its number of rows", size: rows };
  if (rule.kind === "columns" && cols % ranks !== 0) return { field: "its number of columns", size: cols };
  return null;
}
