// Estimates the memory that a rank needs at the height of a staged reload:
//
//   live half + staging half + threads · max(2 MiB, 4 · bytes of the longest row, or 25 MiB with matrices transposed on disk)
//
// The last term is scratch: each of the core's threads holds one tile of a checkpoint tensor and its F32 values. A tile is at
// most 2 MiB, or one row where a row's scale needs all of it; of what is transposed on disk it is 8 MiB, with another one for
// columns that are still to be turned. Checkpoint pages that the system caches are not counted.
//
// On a GPU both halves and two tiles a thread lie in its memory, and as many again in pinned memory of the host; and two larger
// ones for each of the four layers that the GPU may fetch by itself at one time:
//
//   live half + staging half + threads · 2 · (4 MiB, or 8 MiB with matrices transposed on disk) + 4 · 2 · 16 MiB
//
// `threads` is how many the rank's core has: it says so when it registers.

import type { ArenaLayout, Layout } from "../contract/plan.js";

export function estimatePeakBytes(layout: Layout, arena: ArenaLayout, threads: number): number {
  let longestRowBytes = 0;
  for (const { kernelTensors } of layout.layers) {
    for (const { cols } of kernelTensors) longestRowBytes = Math.max(longestRowBytes, cols * F32_BYTES);
  }
  const scratchBytes = isTransposedOnDisk(layout) ? TRANSPOSED_SCRATCH_BYTES : TILE_BYTES;
  return arenaFileBytes(arena) + arena.dataBytes + threads * Math.max(scratchBytes, 4 * longestRowBytes);
}

/** Of a GPU's memory. */
export function estimateDeviceBytes(layout: Layout, arena: ArenaLayout, threads: number): number {
  const tileBytes = isTransposedOnDisk(layout) ? TRANSPOSED_TILE_BYTES : DEVICE_TILE_BYTES;
  return 2 * arena.dataBytes + DEVICE_SLOTS * (threads * tileBytes + FETCH_LANES * FETCHED_TILE_BYTES);
}

/** Whether the core reads columns of a tensor as rows of what it makes. */
function isTransposedOnDisk({ layers }: Layout): boolean {
  return layers.some(({ kernelTensors }) =>
    kernelTensors.some(({ parts }) => parts.some(({ colStride }) => colStride !== 1)),
  );
}

/** Size of a rank's live file. */
export function arenaFileBytes(arena: ArenaLayout): number {
  return arena.headerBytes.byteLength + arena.dataBytes;
}

const TILE_BYTES = 2 * 2 ** 20;
const TRANSPOSED_TILE_BYTES = 8 * 2 ** 20;
/** A tile of 16-bit elements, their F32 values, and 1 MiB of columns. */
const TRANSPOSED_SCRATCH_BYTES = 3 * TRANSPOSED_TILE_BYTES + 2 ** 20;
const DEVICE_SLOTS = 2;
const FETCH_LANES = 4;
const FETCHED_TILE_BYTES = 16 * 2 ** 20;
const DEVICE_TILE_BYTES = 4 * 2 ** 20;
const F32_BYTES = 4;
