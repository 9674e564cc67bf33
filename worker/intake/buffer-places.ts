// Where in the buffers a rank's windows lie. Each has a place of its own, whether or not anything is there: addresses cost nothing,
// and pages are taken as rows arrive. A matrix begins where a page does, so that no page is of two.

import { DTYPES, type StoredDType } from "../../orchestrator/contract/dtype.js";
import { dtypeOf } from "../../orchestrator/program/make-program.js";
import { isTransposed, type KernelGeometry, tensorOf, type Window } from "../../orchestrator/program/rank-geometry.js";
import { matrixOf, type RankMatrices } from "../../orchestrator/program/rank-matrices.js";

/** By kernel tensor, for its matrices are alike: bytes from the start of the buffers. */
export interface BufferPlaces {
  /** Of the first matrix; the others follow, each as large. */
  readonly starts: Float64Array;
  readonly windows: readonly MatrixPlaces[];
  /** Of all buffers. */
  readonly bytes: number;
}

interface MatrixPlaces {
  /** Of one matrix, in whole pages. */
  bytes: number;
  /** By window, from the start of the matrix. */
  windows: number[];
}

const PAGE_BYTES = 4096;

export function wholePages(bytes: number): number {
  return Math.ceil(bytes / PAGE_BYTES) * PAGE_BYTES;
}

export function bufferPlaces({ kernels }: RankMatrices, planned: readonly StoredDType[]): BufferPlaces {
  const starts = new Float64Array(kernels.length);
  let end = 0;
  const windows = kernels.map((kernel, index) => {
    const places = placesOf(kernel, planned);
    starts[index] = end;
    end += kernel.count * places.bytes;
    return places;
  });
  return { starts, windows, bytes: Math.max(end, PAGE_BYTES) };
}

function placesOf({ windows, count }: KernelGeometry, planned: readonly StoredDType[]): MatrixPlaces {
  if (count === 0) return { bytes: 0, windows: [] };
  let end = 0;
  const places = windows.map((window) => {
    // Values may come in a larger dtype than planned. What is not used takes addresses, no memory.
    const isCodes = dtypeOf(planned, tensorOf(window, 0)) === "F8_E4M3";
    const { bytes: elementBytes } = DTYPES[isCodes ? "F8_E4M3" : "F32"];
    const place = Math.ceil(end / elementBytes) * elementBytes;
    end = place + window.rows * window.cols * elementBytes;
    return place;
  });
  return { bytes: wholePages(end), windows: places };
}

/** What `bufferPlace` and `bufferSpan` look into. */
interface Placed {
  matrices: RankMatrices;
  buffers: BufferPlaces;
}

/** Where the window's first row lies. */
export function bufferPlace(placed: Placed, index: number, window: number): number {
  const { offset } = bufferSpan(placed, index);
  const kernel = placed.matrices.kernelOf[index] ?? -1;
  return offset + (placed.buffers.windows[kernel]?.windows[window] ?? 0);
}

/** The buffers' range that is the matrix's own; whole pages. */
export function bufferSpan({ matrices, buffers }: Placed, index: number): { offset: number; bytes: number } {
  const kernel = matrices.kernelOf[index] ?? -1;
  const { bytes = 0 } = buffers.windows[kernel] ?? {};
  return { offset: (buffers.starts[kernel] ?? 0) + matrixOf(matrices, index).matrix * bytes, bytes };
}

/** In bytes, from an element to the next of its column and of its row. */
interface Strides {
  rowStride: number;
  colStride: number;
}

/** Strides of a window that is packed: rows without a gap, or columns where those lie together. */
export function packed(window: Window, elementBytes: number): Strides {
  if (isTransposed(window)) return { rowStride: elementBytes, colStride: window.rows * elementBytes };
  return { rowStride: window.cols * elementBytes, colStride: elementBytes };
}
