// Turns a layout into the arena of a rank: a place for every kernel tensor and scale, the same on all ranks that hold as many
// experts, described by a safetensors header so that the arena's file loads with any reader of that format. And into the order
// of an exported file.
//
//   live file:  | length, JSON, spaces to a multiple of 4096 | tensor, pad to 256, tensor, pad to 256, ... |
//   export:     | length, JSON, spaces to a multiple of 8    | tensor, tensor, ... (widest dtype first, so aligned) |

import type { Span } from "../../native/native.js";
import { byteCount, DTYPES, type DType } from "../contract/dtype.js";
import type { ArenaLayout, ArenaTensor, KernelTensor, Layout } from "../contract/plan.js";
import { heldShape, matricesOf } from "./expert-placement.js";

export function layoutArena(layout: Layout, rank: number): ArenaLayout {
  const tensors: ArenaTensor[] = [];
  const withPads: ArenaTensor[] = [];
  let end = 0;
  for (const { name, dtype, shape } of heldTensors(layout, rank)) {
    const tensor: ArenaTensor = { name, dtype, shape, offset: end, bytes: byteCount(dtype, shape) };
    tensors.push(tensor);
    withPads.push(tensor);
    end += tensor.bytes;
    const padBytes = Math.ceil(end / ARENA_ALIGNMENT) * ARENA_ALIGNMENT - end;
    // The format allows no holes, so what lies between two tensors is a tensor too.
    if (padBytes > 0) withPads.push(pad(withPads.length - tensors.length, end, padBytes));
    end += padBytes;
  }
  return { tensors, dataBytes: end, headerBytes: safetensorsHeader(withPads, { format: "pt" }, PAGE_BYTES) };
}

export interface ExportLayout {
  headerBytes: Uint8Array;
  /** Ranges of the arena's tensor bytes, in the order of the exported file. */
  spans: Span[];
}

/** `metadata`: of the file, such as the weight version. */
export function exportLayout(arena: ArenaLayout, metadata: Record<string, string>): ExportLayout {
  const ordered = arena.tensors.toSorted(
    (a, b) => DTYPES[b.dtype].bytes - DTYPES[a.dtype].bytes || (a.name < b.name ? -1 : 1),
  );
  let offset = 0;
  const packed = ordered.map((tensor) => {
    offset += tensor.bytes;
    return { ...tensor, offset: offset - tensor.bytes };
  });
  return {
    headerBytes: safetensorsHeader(packed, { format: "pt", ...metadata }, HEADER_ALIGNMENT),
    spans: ordered.filter(({ bytes }) => bytes > 0).map(({ offset, bytes }) => ({ offset, bytes })),
  };
}

/** The arenas of all ranks; those that hold as many of everything share one. */
export function layoutArenas(layout: Layout): ArenaLayout[] {
  const known = new Map<string, ArenaLayout>();
  const counts = new Map<number, KernelTensor>();
  for (const { kernelTensors } of layout.layers)
    for (const kernel of kernelTensors) if (kernel.experts?.byRank === true) counts.set(kernel.experts.count, kernel);
  const ranks = layout.tensorParallelSize;
  return Array.from({ length: ranks }, (_, rank) => {
    const key = [...counts.values()].map((kernel) => matricesOf(kernel, rank, ranks).count).join();
    const arena = known.get(key) ?? layoutArena(layout, rank);
    known.set(key, arena);
    return arena;
  });
}

/** Every kernel tensor in the order of loading, each scale after what it scales. */
function* heldTensors(layout: Layout, rank: number): Generator<{ name: string; dtype: DType; shape: number[] }> {
  const ranks = layout.tensorParallelSize;
  for (const { kernelTensors } of layout.layers) {
    for (const kernel of kernelTensors) {
      const { name, dtype, shape, scale } = kernel;
      yield { name, dtype, shape: heldShape(kernel, shape, rank, ranks) };
      if (scale !== null) yield { name: scale.name, dtype: "F32", shape: heldShape(kernel, scale.shape, rank, ranks) };
    }
  }
}

const PAD_PREFIX = "__pad__.";

/** Whether a tensor of a live file is only there because the format allows no holes. */
export function isPad(name: string): boolean {
  return name.startsWith(PAD_PREFIX);
}

function pad(index: number, offset: number, bytes: number): ArenaTensor {
  return { name: `${PAD_PREFIX}${index}`, dtype: "U8", shape: [bytes], offset, bytes };
}

/** `tensors` side by side from offset 0. */
function safetensorsHeader(
  tensors: readonly ArenaTensor[],
  metadata: Record<string, string>,
  multipleBytes: number,
): Uint8Array {
  const entries = tensors.map(({ name, dtype, shape, offset, bytes }) => {
    const entry = { dtype, shape, data_offsets: [offset, offset + bytes] };
    return `${JSON.stringify(name)}:${JSON.stringify(entry)}`;
  });
  const json = new TextEncoder().encode(`{${[`"__metadata__":${JSON.stringify(metadata)}`, ...entries].join(",")}}`);
  const headerBytes = new Uint8Array(Math.ceil((PREFIX_BYTES + json.byteLength) / multipleBytes) * multipleBytes);
  headerBytes.fill(SPACE);
  new DataView(headerBytes.buffer).setBigUint64(0, BigInt(headerBytes.byteLength - PREFIX_BYTES), true);
  headerBytes.set(json, PREFIX_BYTES);
  return headerBytes;
}

/** Bytes; each kernel tensor begins at a multiple of so many. */
export const ARENA_ALIGNMENT = 256;
const PAGE_BYTES = 4096;
const HEADER_ALIGNMENT = 8;
const PREFIX_BYTES = 8;
const SPACE = 0x20;
