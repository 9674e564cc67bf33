// Turns layers of a plan into numbers for the native core: which ranges of which files a rank reads, and where each row of
// them lands in its arena. What follows from the layout is worked out once and kept; a new checkpoint of the same layout
// only puts its files and offsets in. The names stay here, for the sentence that an error needs.

import { type LayerProgram, OP_FIELDS, type ProgramFile, SLICE_FIELDS, type Span } from "../../native/native.js";
import { DTYPES } from "../contract/dtype.js";
import { LayercastError } from "../contract/errors.js";
import type { ArenaLayout, ArenaTensor, KernelTensor, Layout, Plan, Source } from "../contract/plan.js";
import { SCHEMES } from "../contract/recipe.js";
import { type Cut, cutPart } from "./cut-part.js";

export interface ProgramRequest {
  /** Indexes into Layout.layers. */
  layers: readonly number[];
  rank: number;
  phase: KernelTensor["phase"];
  allowNonFinite: boolean;
}

/** Where in a checkpoint tensor a slice begins. */
export interface SliceOrigin {
  /** Index into Layout.checkpointTensors. */
  tensor: number;
  row: number;
  col: number;
  /** Dimensions of the checkpoint tensor: 0 a scalar, 1 a vector, 2 a matrix. */
  dimensions: number;
}

export interface ResolvedProgram {
  program: LayerProgram;
  /** One a slice of the program. */
  origins: SliceOrigin[];
  /** What the program writes, in the order of its ops. */
  spans: Span[];
}

/** A layer of one rank and phase as far as the layout determines it; offsets and strides are in elements. */
interface Geometry {
  ops: { kernel: KernelTensor; outOffset: number; scaleOffset: number; zeroRows: number; slices: SliceGeometry[] }[];
  spans: Span[];
}

interface SliceGeometry {
  origin: SliceOrigin;
  cut: Cut;
  firstElement: number;
  rowElements: number;
  toRow: number;
}

export type Resolve = (source: Source, request: ProgramRequest) => ResolvedProgram;

/** A resolver for one layout; it keeps the geometry of every (layer, rank, phase) it has been asked for. */
export function createResolver(layout: Layout, arena: ArenaLayout): Resolve {
  const places = placesOf(arena);
  const known = new Map<string, Geometry>();
  return (source, request) => {
    const geometries = request.layers.map((layer) => {
      const key = `${request.phase}/${request.rank}/${layer}`;
      const geometry = known.get(key) ?? layerGeometry(layout, places, layer, request);
      known.set(key, geometry);
      return geometry;
    });
    return bind(geometries, source, request.allowNonFinite);
  };
}

/** The same for one time: nothing is kept. */
export function resolveOnce({ layout, source }: Plan, places: Places, request: ProgramRequest): ResolvedProgram {
  const geometries = request.layers.map((layer) => layerGeometry(layout, places, layer, request));
  return bind(geometries, source, request.allowNonFinite);
}

/** Kernel tensor or scale name -> its place in the arena. */
export type Places = ReadonlyMap<string, ArenaTensor>;

export function placesOf(arena: ArenaLayout): Places {
  return new Map(arena.tensors.map((tensor) => [tensor.name, tensor]));
}

function layerGeometry(layout: Layout, places: Places, layer: number, { rank, phase }: ProgramRequest): Geometry {
  const ranks = layout.tensorParallelSize;
  const planLayer = layout.layers[layer];
  if (planLayer === undefined || !(rank >= 0 && rank < ranks))
    throw new LayercastError("internal", `The plan has no layer ${layer} for rank ${rank} of ${ranks}.`);
  const geometry: Geometry = { ops: [], spans: [] };
  for (const kernel of planLayer.kernelTensors) {
    if (kernel.phase !== phase) continue;
    const out = placeOf(places, kernel.name);
    const scale = kernel.scale === null ? null : placeOf(places, kernel.scale.name);
    const { slices, zeroRows } = cutSlices(kernel, rank, ranks);
    geometry.ops.push({ kernel, outOffset: out.offset, scaleOffset: scale?.offset ?? -1, zeroRows, slices });
    for (const place of scale === null ? [out] : [out, scale])
      geometry.spans.push({ offset: place.offset, bytes: place.bytes });
  }
  return geometry;
}

function cutSlices(kernel: KernelTensor, rank: number, ranks: number): { slices: SliceGeometry[]; zeroRows: number } {
  const slices: SliceGeometry[] = [];
  let toRow = 0;
  let zeroRows = 0;
  for (const part of kernel.parts) {
    const cut = cutPart(part, rank, ranks);
    const origin = { tensor: part.tensor, row: cut.row, col: cut.col, dimensions: kernel.shape.length };
    const firstElement = cut.row * part.cols + cut.col;
    if (cut.rows > 0) slices.push({ origin, cut, firstElement, rowElements: part.cols, toRow });
    toRow += cut.rows;
    zeroRows += cut.zeroRows;
  }
  return { slices, zeroRows };
}

function bind(geometries: readonly Geometry[], source: Source, allowNonFinite: boolean): ResolvedProgram {
  const ops = geometries.flatMap((geometry) => geometry.ops);
  const slices = ops.flatMap((op) => op.slices);
  const fileNumbers = numberFiles(slices, source);
  const opTable = new Float64Array(ops.length * OP_FIELDS.length);
  const sliceTable = new Float64Array(slices.length * SLICE_FIELDS.length);
  let firstSlice = 0;
  ops.forEach((op, index) => {
    const row = opRow(op, firstSlice, source);
    opTable.set(
      OP_FIELDS.map((field) => row[field]),
      index * OP_FIELDS.length,
    );
    firstSlice += op.slices.length;
  });
  slices.forEach((slice, index) => {
    const row = sliceRow(slice, fileNumbers, source);
    sliceTable.set(
      SLICE_FIELDS.map((field) => row[field]),
      index * SLICE_FIELDS.length,
    );
  });
  return {
    program: { files: filesOf(fileNumbers, source), ops: opTable, slices: sliceTable, allowNonFinite },
    origins: slices.map(({ origin }) => origin),
    spans: geometries.flatMap(({ spans }) => spans),
  };
}

function opRow(
  { kernel, outOffset, scaleOffset, zeroRows, slices }: Geometry["ops"][number],
  firstSlice: number,
  source: Source,
): Record<(typeof OP_FIELDS)[number], number> {
  const stored = source.dtype[kernel.parts[0]?.tensor ?? -1];
  // All parts have one dtype; values that have the wanted one already are copied as they are.
  const roundTo = kernel.roundTo === stored ? null : kernel.roundTo;
  return {
    scheme: SCHEMES[kernel.scheme].code,
    outDtype: DTYPES[kernel.dtype].code,
    roundDtype: roundTo === null ? -1 : DTYPES[roundTo].code,
    rows: kernel.rows,
    cols: kernel.cols,
    outOffset,
    scaleOffset,
    firstSlice,
    sliceCount: slices.length,
    zeroRows,
    constant: kernel.constant ?? Number.NaN,
    mustBePositive: kernel.mustBePositive ? 1 : 0,
  };
}

function sliceRow(
  { origin, cut, firstElement, rowElements, toRow }: SliceGeometry,
  fileNumbers: ReadonlyMap<number, number>,
  source: Source,
): Record<(typeof SLICE_FIELDS)[number], number> {
  const dtype = source.dtype[origin.tensor];
  const offset = source.offset[origin.tensor];
  const file = fileNumbers.get(source.file[origin.tensor] ?? -1);
  if (dtype === undefined || offset === undefined || file === undefined)
    throw new LayercastError("internal", `The source has no tensor ${origin.tensor}: it is of another layout.`);
  const { bytes, code } = DTYPES[dtype];
  return {
    file,
    offset: offset + firstElement * bytes,
    rowStride: rowElements * bytes,
    rows: cut.rows,
    cols: cut.cols,
    dtype: code,
    toRow,
  };
}

/** Index into Source.files -> index into the program's own files: a program names only the files it reads. */
function numberFiles(slices: readonly SliceGeometry[], source: Source): Map<number, number> {
  const numbers = new Map<number, number>();
  for (const { origin } of slices) {
    const file = source.file[origin.tensor] ?? -1;
    if (!numbers.has(file)) numbers.set(file, numbers.size);
  }
  return numbers;
}

function filesOf(numbers: ReadonlyMap<number, number>, source: Source): ProgramFile[] {
  return [...numbers.keys()].map((index) => {
    const file = source.files[index];
    if (file === undefined) throw new LayercastError("internal", `The source has no file ${index}.`);
    const { path, sizeBytes, mtimeNs, inode } = file;
    return { path, sizeBytes, mtimeNs, inode };
  });
}

function placeOf(places: Places, name: string): ArenaTensor {
  const place = places.get(name);
  if (place === undefined) throw new LayercastError("internal", `The arena has no place for ${name}.`);
  return place;
}

/** An element of a slice, as the core counts it, in the words of the checkpoint: the tensor and the index into all of it. */
export function describeElement(
  layout: Layout,
  { origins }: Pick<ResolvedProgram, "origins">,
  { slice, row, col }: { slice: number; row: number; col: number },
): { tensor: string; index: number[] } {
  const origin = origins[slice];
  const tensor = layout.checkpointTensors[origin?.tensor ?? -1];
  if (origin === undefined || tensor === undefined)
    throw new LayercastError("internal", `The program has no slice ${slice}.`);
  return { tensor, index: [origin.row + row, origin.col + col].slice(0, origin.dimensions) };
}
