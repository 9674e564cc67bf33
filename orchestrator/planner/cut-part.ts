// The partition rules as arithmetic: which rectangle of a checkpoint tensor a rank takes, and how many rows of the rank's
// kernel tensor that makes. Everything else in this folder that needs to know a rule asks here.

import type { Part } from "../contract/plan.js";

/** A rectangle of the whole checkpoint tensor, and the zero rows that follow it in the rank's tensor. */
export interface Cut {
  row: number;
  rows: number;
  col: number;
  cols: number;
  zeroRows: number;
}

export function cutPart(part: Part, rank: number, ranks: number): Cut {
  const { rows, cols, rule } = part;
  switch (rule.kind) {
    case "replicate":
      return { row: 0, rows, col: 0, cols, zeroRows: 0 };
    case "rows":
      return { row: (rank * rows) / ranks, rows: rows / ranks, col: 0, cols, zeroRows: 0 };
    case "columns":
      return { row: 0, rows, col: (rank * cols) / ranks, cols: cols / ranks, zeroRows: 0 };
    case "kv_heads": {
      const headRows = rows / rule.heads;
      const heads = Math.max(1, rule.heads / ranks);
      const head = Math.floor((rank * rule.heads) / ranks);
      return { row: head * headRows, rows: heads * headRows, col: 0, cols, zeroRows: 0 };
    }
    case "vocabulary": {
      const local = rule.paddedRows / ranks;
      const row = Math.min(rank * local, rows);
      const present = Math.min(row + local, rows) - row;
      return { row, rows: present, col: 0, cols, zeroRows: local - present };
    }
    default:
      return rule satisfies never;
  }
}

/** How many ranks hold each element of the part. */
export function replicasOf(part: Part, ranks: number): number {
  if (part.rule.kind === "replicate") return ranks;
  return part.rule.kind === "kv_heads" ? Math.max(1, ranks / part.rule.heads) : 1;
}
