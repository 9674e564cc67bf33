// Where experts lie. Under tensor parallelism every rank has its cut of each; under expert parallelism a rank has some of them
// whole, in order: of E experts on T ranks each has ⌊E/T⌋, the first E mod T ranks one more.

import type { KernelTensor } from "../contract/plan.js";

/** The matrices of a kernel tensor that a rank holds: `count` of them from `first`. One where there are no experts. */
export function matricesOf(
  { experts }: Pick<KernelTensor, "experts">,
  rank: number,
  ranks: number,
): { first: number; count: number } {
  if (experts === null) return { first: 0, count: 1 };
  if (!experts.byRank) return { first: 0, count: experts.count };
  const each = Math.floor(experts.count / ranks);
  const oneMore = experts.count % ranks;
  return { first: rank * each + Math.min(rank, oneMore), count: each + (rank < oneMore ? 1 : 0) };
}

/** The shape of what a rank holds: `shape`, that of one matrix, as often as the rank has experts. */
export function heldShape(
  kernel: Pick<KernelTensor, "experts">,
  shape: readonly number[],
  rank: number,
  ranks: number,
): number[] {
  return kernel.experts === null ? [...shape] : [matricesOf(kernel, rank, ranks).count, ...shape];
}
