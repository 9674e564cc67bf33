// Works out what of a layer's program follows from the layout alone: which elements of which checkpoint tensors a rank reads,
// and where in its arena they land. An op is one matrix: a kernel tensor, or one expert of it.

import { DERIVED_FIELDS, type Span } from "../../native/native.js";
import { DTYPES } from "../contract/dtype.js";
import { LayercastError } from "../contract/errors.js";
import type { ArenaLayout, ArenaTensor, KernelTensor, Layout, Part, PlanLayer } from "../contract/plan.js";
import { SCHEMES } from "../contract/recipe.js";
import { type Cut, cutPart } from "./cut-part.js";
import { matricesOf } from "./expert-placement.js";
import { AGREEMENT, type DERIVED, OP, SCALE, SLICE, WIDTHS } from "./program-tables.js";

/**
 * A layer of one rank and phase as far as the layout determines it: a program's tables, in which slices and scales have the
 * index of their checkpoint tensor for a file, their first element in it for an offset, and strides in elements.
 */
export interface Geometry {
  ops: Float64Array;
  slices: Float64Array;
  scales: Float64Array;
  agreements: Float64Array;
  derived: Float64Array;
  spans: Span[];
}

/** Gives a table with room for so many rows; what is in them does not matter, every field is written. */
export type NewTable = (table: keyof typeof WIDTHS, rows: number) => Float64Array;

const newTable: NewTable = (table, rows) => new Float64Array(rows * WIDTHS[table]);

/** Gives the same memory each time, for one who is done with a geometry before the next is made. */
export function reusedTables(): NewTable {
  const largest = new Map<string, Float64Array>();
  return (table, rows) => {
    const length = rows * WIDTHS[table];
    const known = largest.get(table);
    if (known !== undefined && known.length >= length) return known.subarray(0, length);
    const grown = new Float64Array(length);
    largest.set(table, grown);
    return grown;
  };
}

/** Kernel tensor or scale name -> its place in the arena. */
export type Places = ReadonlyMap<string, ArenaTensor>;

export function placesOf(arena: ArenaLayout): Places {
  return new Map(arena.tensors.map((tensor) => [tensor.name, tensor]));
}

/** A kernel tensor with what its rank takes: cuts of each part, and which matrices. */
interface CutKernel {
  kernel: KernelTensor;
  cuts: Cut[];
  zeroRows: number;
  zeroCols: number;
  first: number;
  count: number;
}

export function layerGeometry(
  layout: Layout,
  places: Places,
  layer: number,
  { rank, phase }: { rank: number; phase: KernelTensor["phase"] },
  tables: NewTable = newTable,
): Geometry {
  const ranks = layout.tensorParallelSize;
  const planLayer = layout.layers[layer];
  if (planLayer === undefined || !(rank >= 0 && rank < ranks))
    throw new LayercastError("internal", `The plan has no layer ${layer} for rank ${rank} of ${ranks}.`);
  const kernels = planLayer.kernelTensors.filter((kernel) => kernel.phase === phase);
  const loaded = kernels
    .filter(({ derived }) => derived === null)
    .map((kernel): CutKernel => {
      const cuts = kernel.parts.map((part) => cutPart(part, rank, ranks));
      const zeroRows = cuts.reduce((sum, cut) => sum + cut.zeroRows, 0);
      const zeroCols = cuts[0]?.zeroCols ?? 0;
      return { kernel, cuts, zeroRows, zeroCols, ...matricesOf(kernel, rank, ranks) };
    });
  const geometry = emptyGeometry(loaded, tables);
  const next: Filled = { ops: 0, slices: 0, scales: 0, agreements: 0 };
  for (const cut of loaded) putKernel(geometry, next, cut, places);
  geometry.derived = derivedTable(kernels, planLayer, places);
  for (const { name, scale } of kernels) {
    for (const place of scale === null ? [name] : [name, scale.name]) {
      const { offset, bytes } = placeOf(places, place);
      if (bytes > 0) geometry.spans.push({ offset, bytes });
    }
  }
  return geometry;
}

/** Rows filled so far. */
type Filled = Record<"ops" | "slices" | "scales" | "agreements", number>;

/** Tables with room for these kernel tensors. */
function emptyGeometry(kernels: readonly CutKernel[], tables: NewTable): Geometry {
  const rows: Filled = { ops: 0, slices: 0, scales: 0, agreements: 0 };
  for (const { kernel, cuts, count } of kernels) {
    rows.ops += count;
    rows.slices += count * cuts.filter((cut) => cut.rows > 0).length;
    rows.scales += count * kernel.parts.filter(({ scales }, part) => scales !== null && takes(cuts[part])).length;
    if (kernel.mustAgree) rows.agreements += count * (cuts.length - 1);
  }
  return {
    ops: tables("ops", rows.ops),
    slices: tables("slices", rows.slices),
    scales: tables("scales", rows.scales),
    agreements: tables("agreements", rows.agreements),
    derived: new Float64Array(0),
    spans: [],
  };
}

function takes(cut: Cut | undefined): boolean {
  return cut !== undefined && cut.rows > 0;
}

/** One op a matrix, each a matrix further in the arena. */
function putKernel(geometry: Geometry, next: Filled, cut: CutKernel, places: Places): void {
  const { kernel, count } = cut;
  const out = placeOf(places, kernel.name);
  const scale = kernel.scale === null ? null : placeOf(places, kernel.scale.name);
  for (let matrix = 0; matrix < count; matrix++) {
    const firstSlice = next.slices;
    putSlices(geometry, next, cut, cut.first + matrix);
    const outOffset = out.offset + (matrix * out.bytes) / count;
    const scaleOffset = scale === null ? -1 : scale.offset + (matrix * scale.bytes) / count;
    const sliceCount = kernel.mustAgree ? 1 : next.slices - firstSlice;
    const { ops } = geometry;
    const at = next.ops++ * WIDTHS.ops;
    ops[at + OP.scheme] = SCHEMES[kernel.scheme].code;
    ops[at + OP.outDtype] = DTYPES[kernel.dtype].code;
    ops[at + OP.roundDtype] = kernel.roundTo === null ? -1 : DTYPES[kernel.roundTo].code;
    ops[at + OP.rows] = kernel.rows;
    ops[at + OP.cols] = kernel.cols;
    ops[at + OP.outOffset] = outOffset;
    ops[at + OP.scaleOffset] = scaleOffset;
    ops[at + OP.firstSlice] = firstSlice;
    ops[at + OP.sliceCount] = sliceCount;
    ops[at + OP.zeroRows] = cut.zeroRows;
    ops[at + OP.zeroCols] = cut.zeroCols;
    ops[at + OP.constant] = kernel.constant ?? Number.NaN;
    ops[at + OP.mustBePositive] = kernel.mustBePositive ? 1 : 0;
  }
}

/** The slices of one matrix, stacked; of parts that must agree each lies at the first row, and only the first slice is the op's. */
function putSlices(geometry: Geometry, next: Filled, { kernel, cuts }: CutKernel, matrix: number): void {
  const { slices, agreements } = geometry;
  const firstSlice = next.slices;
  let toRow = 0;
  for (let index = 0; index < cuts.length; index++) {
    const part = kernel.parts[index];
    const cut = cuts[index];
    if (part === undefined || cut === undefined || cut.rows === 0) continue;
    const slice = next.slices++;
    const at = slice * WIDTHS.slices;
    slices[at + SLICE.file] = part.tensors[matrix] ?? -1;
    slices[at + SLICE.offset] = (part.firsts[matrix] ?? 0) + cut.row * part.rowStride + cut.col * part.colStride;
    slices[at + SLICE.rowStride] = part.rowStride;
    slices[at + SLICE.rows] = cut.rows;
    slices[at + SLICE.cols] = cut.cols;
    slices[at + SLICE.toRow] = toRow;
    slices[at + SLICE.colStride] = part.colStride;
    slices[at + SLICE.scale] = part.scales === null ? -1 : putScales(geometry, next, part.scales, cut, matrix);
    if (!kernel.mustAgree) {
      toRow += cut.rows + cut.zeroRows;
    } else if (slice !== firstSlice) {
      const pair = next.agreements++ * WIDTHS.agreements;
      agreements[pair + AGREEMENT.slice] = firstSlice;
      agreements[pair + AGREEMENT.with] = slice;
    }
  }
}

function putScales(
  { scales }: Geometry,
  next: Filled,
  { tensors, firsts, rowStride, blockRows, blockCols, row, col }: NonNullable<Part["scales"]>,
  cut: Cut,
  matrix: number,
): number {
  const at = next.scales * WIDTHS.scales;
  scales[at + SCALE.file] = tensors[matrix] ?? -1;
  scales[at + SCALE.offset] = firsts[matrix] ?? 0;
  scales[at + SCALE.rowStride] = rowStride;
  scales[at + SCALE.blockRows] = blockRows;
  scales[at + SCALE.blockCols] = blockCols;
  scales[at + SCALE.firstRow] = row + cut.row;
  scales[at + SCALE.firstCol] = col + cut.col;
  return next.scales++;
}

function derivedTable(kernels: readonly KernelTensor[], layer: PlanLayer, places: Places): Float64Array {
  const rows: number[] = [];
  for (const { name, dtype, rows: headRowsTaken, cols, derived } of kernels) {
    if (derived === null) continue;
    const { from, scheme, scale, heads, headRows, firstRow, transposed } = derived;
    const weight = layer.kernelTensors.find((kernel) => kernel.name === from);
    if (weight === undefined) throw new LayercastError("internal", `${layer.name} has no kernel tensor ${from}.`);
    const row: Record<keyof typeof DERIVED, number> = {
      scheme: SCHEMES[scheme].code,
      weightOffset: placeOf(places, from).offset,
      weightDtype: DTYPES[weight.dtype].code,
      scaleOffset: scale === null ? -1 : placeOf(places, scale).offset,
      outOffset: placeOf(places, name).offset,
      outDtype: DTYPES[dtype].code,
      heads,
      headRows,
      firstRow,
      rows: headRowsTaken,
      cols,
      transposed: transposed ? 1 : 0,
    };
    rows.push(...DERIVED_FIELDS.map((field) => row[field]));
  }
  return Float64Array.from(rows);
}

function placeOf(places: Places, name: string): ArenaTensor {
  const place = places.get(name);
  if (place === undefined) throw new LayercastError("internal", `The arena has no place for ${name}.`);
  return place;
}
