// Turns layers of a plan into numbers for the native core: which ranges of which files a rank reads, and where each row of
// them lands in its arena. What follows from the layout is worked out once and kept; a new checkpoint of the same layout
// only puts its files and offsets in. The names stay here, for the sentence that an error needs.

import type { LayerProgram, ProgramFile, Span } from "../../native/native.js";
import { DTYPES } from "../contract/dtype.js";
import { LayercastError } from "../contract/errors.js";
import type { ArenaLayout, KernelTensor, Layout, Plan, Source } from "../contract/plan.js";
import { type Geometry, layerGeometry, type NewTable, type Places, placesOf } from "./layer-geometry.js";
import { AGREEMENT, OP, SCALE, SLICE, valuesDType, WIDTHS } from "./program-tables.js";

export interface ProgramRequest {
  /** Indexes into Layout.layers. */
  layers: readonly number[];
  rank: number;
  phase: KernelTensor["phase"];
  allowNonFinite: boolean;
}

export interface ResolvedProgram {
  program: LayerProgram;
  /** The program's slices as they were before a source was put in, see Geometry. */
  origins: Float64Array;
  /** What the program writes, in the order of its kernel tensors. */
  spans: Span[];
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
    const joined = joinGeometries(geometries);
    const origins = joined.slices.slice();
    return { program: bind(joined, source, request.allowNonFinite), origins, spans: joined.spans };
  };
}

/** The program of one layer, for one time: nothing is kept, and its tables may be used again. */
export function resolveOnce(
  { layout, source }: Plan,
  places: Places,
  layer: number,
  of: { rank: number; phase: KernelTensor["phase"] },
  tables: NewTable,
): LayerProgram {
  return bind(layerGeometry(layout, places, layer, of, tables), source, false);
}

/** One after the other, in tables of its own. */
function joinGeometries(geometries: readonly Geometry[]): Geometry {
  const join = (table: keyof typeof WIDTHS) => {
    const whole = new Float64Array(geometries.reduce((sum, geometry) => sum + geometry[table].length, 0));
    let at = 0;
    for (const geometry of geometries) {
      whole.set(geometry[table], at);
      at += geometry[table].length;
    }
    return whole;
  };
  const tables = {
    ops: join("ops"),
    slices: join("slices"),
    scales: join("scales"),
    agreements: join("agreements"),
    derived: join("derived"),
  };
  numberOnwards(geometries, tables);
  return { ...tables, spans: geometries.flatMap(({ spans }) => spans) };
}

/** Rows of one table that name rows of another: each geometry counts from 0, the program goes on. */
function numberOnwards(geometries: readonly Geometry[], tables: Omit<Geometry, "spans">): void {
  const { ops, slices, agreements } = tables;
  const base = { ops: 0, slices: 0, scales: 0, agreements: 0 };
  for (const geometry of geometries) {
    const end = { ...base };
    for (const table of ["ops", "slices", "scales", "agreements"] as const)
      end[table] += geometry[table].length / WIDTHS[table];
    for (let row = base.ops; row < end.ops; row++) add(ops, row * WIDTHS.ops + OP.firstSlice, base.slices);
    for (let row = base.agreements; row < end.agreements; row++) {
      add(agreements, row * WIDTHS.agreements + AGREEMENT.slice, base.slices);
      add(agreements, row * WIDTHS.agreements + AGREEMENT.with, base.slices);
    }
    for (let row = base.slices; row < end.slices; row++) {
      const at = row * WIDTHS.slices + SLICE.scale;
      if (slices[at] !== -1) add(slices, at, base.scales);
    }
    Object.assign(base, end);
  }
}

function add(table: Float64Array, at: number, summand: number): void {
  table[at] = (table[at] ?? 0) + summand;
}

/** The program, in the geometry's own tables. */
function bind(geometry: Geometry, source: Source, allowNonFinite: boolean): LayerProgram {
  const { ops, slices, scales, agreements, derived } = geometry;
  const files: FileNumbers = { numbers: new Int32Array(source.files.length).fill(-1), files: [] };
  putSource(slices, WIDTHS.slices, SLICE, source, files);
  putSource(scales, WIDTHS.scales, SCALE, source, files);
  roundOnlyOthers(ops, slices);
  return { files: files.files, ops, slices, scales, agreements, derived, allowNonFinite };
}

/** A program names only the files it reads. */
interface FileNumbers {
  /** Index into Source.files -> index into `files`, -1: not yet there. */
  numbers: Int32Array;
  files: ProgramFile[];
}

/** Puts files and bytes where a geometry has checkpoint tensors and elements. */
function putSource(
  table: Float64Array,
  width: number,
  columns: { file: number; offset: number; rowStride: number; dtype: number; colStride?: number },
  source: Source,
  files: FileNumbers,
): void {
  const { file, offset, rowStride, dtype, colStride } = columns;
  for (let at = 0; at < table.length; at += width) {
    const tensor = table[at + file] ?? -1;
    const start = source.offset[tensor];
    const stored = source.dtype[tensor];
    if (start === undefined || stored === undefined)
      throw new LayercastError("internal", `The source has no tensor ${tensor}: it is of another layout.`);
    const { bytes, code } = DTYPES[stored];
    table[at + file] = fileNumber(files, source, source.file[tensor] ?? -1);
    table[at + offset] = start + (table[at + offset] ?? 0) * bytes;
    table[at + rowStride] = (table[at + rowStride] ?? 0) * bytes;
    table[at + dtype] = code;
    if (colStride !== undefined) table[at + colStride] = (table[at + colStride] ?? 0) * bytes;
  }
}

function fileNumber({ numbers, files }: FileNumbers, source: Source, index: number): number {
  const known = numbers[index] ?? -1;
  if (known >= 0) return known;
  const file = source.files[index];
  if (file === undefined) throw new LayercastError("internal", `The source has no file ${index}.`);
  const { path, sizeBytes, mtimeNs, inode } = file;
  numbers[index] = files.length;
  return files.push({ path, sizeBytes, mtimeNs, inode }) - 1;
}

/** Values that have the wanted dtype already are copied as they are. */
function roundOnlyOthers(ops: Float64Array, slices: Float64Array): void {
  for (let at = 0; at < ops.length; at += WIDTHS.ops) {
    const count = ops[at + OP.sliceCount] ?? 0;
    if (count > 0 && ops[at + OP.roundDtype] === valuesDType(slices, ops[at + OP.firstSlice] ?? 0, count))
      ops[at + OP.roundDtype] = -1;
  }
}

/** An element of a slice, as the core counts it, in the words of the checkpoint: the tensor and the index into all of it. */
export function describeElement(
  layout: Pick<Layout, "checkpointTensors">,
  { origins }: Pick<ResolvedProgram, "origins">,
  { slice, row, col }: { slice: number; row: number; col: number },
): { tensor: string; index: number[] } {
  const at = slice * WIDTHS.slices;
  const tensor = layout.checkpointTensors[origins[at + SLICE.file] ?? -1];
  if (tensor === undefined) throw new LayercastError("internal", `The program has no slice ${slice}.`);
  const [first = 0, rowStride = 0, colStride = 0] = [SLICE.offset, SLICE.rowStride, SLICE.colStride].map(
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
