// max_buffer_bytes: which rows of a bucket find room in the buffers, and whether waiting for room can ever end.

import { LayercastError } from "../../orchestrator/contract/errors.js";
import { joinNames } from "../../orchestrator/contract/join-names.js";
import { commonRows } from "../../orchestrator/program/row-ranges.js";
import { NotYet } from "../../orchestrator/queue/retry.js";
import { type Cells, matrixAt, missingRows, neededBytes } from "../intake/cells.js";
import type { Arrival } from "./arrivals.js";

/** Rows of a matrix that are to lie in buffers. */
export interface HeldRows {
  index: number;
  arrival: Arrival;
}

/** By the bucket's sequence: what of it found no room. */
export type WaitingBuckets = Map<number, HeldRows[]>;

/**
 * Attention scales always find room: they are small, and in any order they wait for finalize.
 *
 * @param heldBytes measured: memory of all buffers, attention scales included, in bytes
 * @param limitBytes max_buffer_bytes; null: none
 */
export function shareRoom(
  cells: Cells,
  rows: readonly HeldRows[],
  { heldBytes, limitBytes }: { heldBytes: number; limitBytes: number | null },
): { fitting: HeldRows[]; waiting: HeldRows[] } {
  let left = limitBytes === null ? Number.POSITIVE_INFINITY : limitBytes - (heldBytes - cells.finalizeBytes);
  const fitting: HeldRows[] = [];
  const waiting: HeldRows[] = [];
  for (const one of rows) {
    const bytes = neededBytes(cells, one.index, one.arrival.window, one.arrival);
    const isFree = isFinalized(cells, one.index);
    if (isFree || bytes <= left) {
      fitting.push(one);
      if (!isFree) left -= bytes;
    } else {
      waiting.push(one);
    }
  }
  return { fitting, waiting };
}

const ROOM_POLL_MS = 20;

/** Thrown for a bucket that waits: to be tried again, or an error when only buckets that wait could make the room. */
export function waitForRoom(cells: Cells, waiting: WaitingBuckets, limitBytes: number): NotYet | LayercastError {
  const filling = partlyFilled(cells);
  const stuck = filling.filter((index) => waitsForWaiting(cells, index, waiting));
  if (stuck.length < filling.length)
    return new NotYet("the buffers are full; modules that fill will make room", ROOM_POLL_MS);
  const modules = [...cells.heldByModule].map(([module, bytes]) => `${module} (${megabytes(bytes)} MB)`);
  const held = modules.length === 0 ? "it is less than one module needs" : `all of it is held by ${joinNames(modules)}`;
  return new LayercastError(
    "buffers_full",
    `max_buffer_bytes is ${limitBytes}, ${held}, and what they lack is in buckets that wait for room themselves. Send tensors ` +
      "grouped by module, or allow more",
    { max_buffer_bytes: limitBytes, modules: Object.fromEntries(cells.heldByModule), waiting_buckets: waiting.size },
  );
}

/** Matrices of which buffers have a part. */
function partlyFilled(cells: Cells): number[] {
  return [...cells.underWay].flatMap(([index, { held }]) => {
    const isFilling = held.some((ranges) => ranges.length > 0);
    return isFilling && !isFinalized(cells, index) ? [index] : [];
  });
}

function isFinalized(cells: Cells, index: number): boolean {
  return matrixAt(cells, index).geometry.kernel.phase === "finalize";
}

function waitsForWaiting(cells: Cells, index: number, waiting: WaitingBuckets): boolean {
  return [...waiting.values()].flat().some((one) => {
    if (one.index !== index) return false;
    return commonRows(missingRows(cells, index, one.arrival.window), [one.arrival]).length > 0;
  });
}

export function megabytes(bytes: number): string {
  return (bytes / 1e6).toFixed(1);
}
