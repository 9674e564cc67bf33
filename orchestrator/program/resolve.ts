// Where the rows of a checkpoint on disk are, and what an element of a program's slice is in the checkpoint's names.

import type { LayerProgram, ProgramFile } from "../../native/native.js";
import { DTYPES } from "../contract/dtype.js";
import { LayercastError } from "../contract/errors.js";
import type { KernelTensor, Layout, Plan, Source } from "../contract/plan.js";
import {
  dtypeOf,
  makeProgram,
  type ProgramSource,
  type ProgramTables,
  type ResolvedProgram,
  type Write,
} from "./make-program.js";
import { ORIGIN, WIDTHS } from "./program-tables.js";
import { firstOf, type Geometry, layerGeometry, type Places, tensorOf } from "./rank-geometry.js";

/** The program of one layer, for one time: nothing is kept, and its tables may be used again. */
export function resolveOnce(
  { layout, source }: Plan,
  places: Places,
  layer: number,
  of: { rank: number; phase: KernelTensor["phase"] },
  tables: ProgramTables,
): LayerProgram {
  const geometry = layerGeometry(layout, places, layer, of);
  return makeProgram(wholeMatrices(geometry), geometry.derived, inCheckpoint(source, false), tables).program;
}

/** Each op of a layer, in order. */
export function wholeMatrices({ kernels }: Geometry): Write[] {
  const writes: Write[] = [];
  for (const geometry of kernels)
    for (let matrix = 0; matrix < geometry.count; matrix++)
      writes.push({ geometry, matrix, from: 0, to: geometry.rows });
  return writes;
}

/** A checkpoint on disk has each window in one piece. Only the files that are asked for become the program's. */
export function inCheckpoint(source: Source, allowNonFinite: boolean): ProgramSource<Write> {
  const files: ProgramFile[] = [];
  const numbers = new Map<number, number>();
  return {
    files,
    dtypes: source.dtype,
    allowNonFinite,
    find({ geometry, matrix }, index, from, to) {
      const window = geometry.windows[index];
      if (window === undefined) return [];
      const tensor = tensorOf(window, matrix);
      const { bytes } = DTYPES[dtypeOf(source.dtype, tensor)];
      return [
        {
          from,
          to,
          file: fileNumber(source, source.file[tensor] ?? -1, numbers, files),
          offset: (source.offset[tensor] ?? 0) + (firstOf(window, matrix) + from * window.rowStride) * bytes,
          rowStride: window.rowStride * bytes,
          colStride: window.colStride * bytes,
        },
      ];
    },
  };
}

/** `numbers`: index into Source.files -> index into `files`. */
function fileNumber(source: Source, index: number, numbers: Map<number, number>, files: ProgramFile[]): number {
  const known = numbers.get(index);
  if (known !== undefined) return known;
  const file = source.files[index];
  if (file === undefined) throw new LayercastError("internal", `The source has no file ${index}.`);
  const { path, sizeBytes, mtimeNs, inode } = file;
  numbers.set(index, files.length);
  return files.push({ path, sizeBytes, mtimeNs, inode }) - 1;
}

/** An element of a slice, as the core counts it, in the words of the checkpoint: the tensor and the index into all of it. */
export function describeElement(
  layout: Pick<Layout, "checkpointTensors">,
  { origins }: Pick<ResolvedProgram, "origins">,
  { slice, row, col }: { slice: number; row: number; col: number },
): { tensor: string; index: number[] } {
  const at = slice * WIDTHS.origins;
  const tensor = layout.checkpointTensors[origins[at + ORIGIN.tensor] ?? -1];
  if (tensor === undefined) throw new LayercastError("internal", `The program has no slice ${slice}.`);
  const [first = 0, rowStride = 0, colStride = 0] = [ORIGIN.first, ORIGIN.rowStride, ORIGIN.colStride].map(
    (column) => origins[at + column],
  );
  let element = first + row * rowStride + col * colStride;
  const index = tensor.shape.toReversed().map((size) => {
    const within = element % size;
    element = Math.floor(element / size);
    return within;
  });
  return { tensor: tensor.name, index: index.reverse() };
}
