// Proves the programs that the ranks will be given: every op writes to its own place, its slices follow each other from the
// first row to the last, each slice lies inside its part and has its dtype and its scales, and the slices of all ranks together
// are each part as often as its rule says.

import type { LayerProgram } from "../../../native/native.js";
import { countOf } from "../../contract/count-of.js";
import { DTYPES } from "../../contract/dtype.js";
import type { LayercastError } from "../../contract/errors.js";
import type { ArenaLayout, ArenaTensor, KernelTensor, Part, Plan, PlanLayer } from "../../contract/plan.js";
import { SCHEMES } from "../../contract/recipe.js";
import { replicasOf } from "../../program/cut-part.js";
import { reusedTables } from "../../program/make-program.js";
import { AGREEMENT, DERIVED, OP, SCALE, SLICE, WIDTHS } from "../../program/program-tables.js";
import { type Places, placesOf } from "../../program/rank-geometry.js";
import { resolveOnce } from "../../program/resolve.js";
import { isTransposed } from "./check-windows.js";
import { planFault } from "./plan-fault.js";

/** `arenas`: one a rank. */
export function checkPrograms(plan: Plan, arenas: readonly ArenaLayout[]): void {
  const known = new Map([...new Set(arenas)].map((arena) => [arena, placesOf(arena)]));
  const places = arenas.map((arena): Places => known.get(arena) ?? new Map());
  const stored = storedOf(plan);
  const tables = reusedTables();
  plan.layout.layers.forEach((layer, index) => {
    for (const phase of ["layer", "finalize"] as const) {
      const kernels = layer.kernelTensors.filter((kernel) => kernel.phase === phase);
      const loaded = kernels.filter(({ derived }) => derived === null);
      const taken = loaded.map((kernel) => nothingTaken(kernel, plan.layout.tensorParallelSize));
      places.forEach((ofRank, rank) => {
        const program = resolveOnce(plan, ofRank, index, { rank, phase }, tables);
        checkProgram(stored, taken, program, ofRank);
        checkDerived(layer, kernels, program, ofRank);
      });
      for (const kernel of taken) checkTaken(kernel);
    }
  });
}

/** Where the bytes of each checkpoint tensor are; looked up once, for there are many slices of each. */
interface Stored {
  offset: Float64Array;
  elementBytes: Int32Array;
  dtype: Int32Array;
  path: string[];
}

function storedOf({ source }: Plan): Stored {
  return {
    offset: new Float64Array(source.offset),
    elementBytes: new Int32Array(source.dtype.map((name) => DTYPES[name].bytes)),
    dtype: new Int32Array(source.dtype.map((name) => DTYPES[name].code)),
    path: source.file.map((file) => source.files[file]?.path ?? ""),
  };
}

/** What the ranks so far have taken of a kernel tensor. */
interface Taken {
  kernel: KernelTensor;
  /** Matrices that each rank has written. */
  counts: number[];
  /** By part: ranks that hold each element. */
  replicas: number[];
  /** A row of RANGE a matrix and part. */
  ranges: Float64Array;
}

/** Of a part's matrix: how far it is taken, and of the range taken last its start, its times, and whether it is of columns. */
const RANGE = { end: 0, start: 1, times: 2, ofColumns: 3, width: 4 } as const;

function nothingTaken(kernel: KernelTensor, ranks: number): Taken {
  const { experts, parts } = kernel;
  const replicas = parts.map((part) => (experts?.byRank === true ? 1 : replicasOf(part, ranks)));
  const ranges = new Float64Array((experts?.count ?? 1) * parts.length * RANGE.width);
  return { kernel, counts: [], replicas, ranges };
}

/** The row of each table that the check has come to. */
type Reached = Record<"ops" | "slices" | "scales" | "agreements", number>;

function checkProgram(stored: Stored, kernels: readonly Taken[], program: LayerProgram, places: Places): void {
  const at: Reached = { ops: 0, slices: 0, scales: 0, agreements: 0 };
  for (const taken of kernels) {
    const { kernel, counts } = taken;
    const { experts } = kernel;
    const out = placeOf(kernel, kernel.name, places);
    const scale = kernel.scale === null ? null : placeOf(kernel, kernel.scale.name, places);
    // Matrices go to the ranks in order, or all of them to each.
    const first = experts?.byRank === true ? counts.reduce((sum, count) => sum + count, 0) : 0;
    const held = experts === null ? 1 : (out.shape[0] ?? 0);
    const isWrong = experts?.byRank === false ? held !== experts.count : first + held > (experts?.count ?? 1);
    if (isWrong) throw fault(kernel, `a rank has matrices ${first} to ${first + held - 1}`);
    for (let matrix = 0; matrix < held; matrix++) {
      const scaleOffset = scale === null ? -1 : scale.offset + (matrix * scale.bytes) / held;
      checkOp(kernel, program, at.ops, out.offset + (matrix * out.bytes) / held, scaleOffset);
      checkSlices(stored, taken, program, first + matrix, at);
      at.ops++;
    }
    counts.push(held);
  }
  for (const table of ["ops", "slices", "scales", "agreements"] as const) {
    const rows = program[table].length / WIDTHS[table];
    if (rows !== at[table]) throw planFault(`a program has ${rows} ${table}, its kernel tensors ${at[table]}`, {});
  }
}

/** The op writes to its own place in the arena, and its scales to theirs; checkArena has seen that places are apart. */
function checkOp(
  kernel: KernelTensor,
  { ops }: LayerProgram,
  op: number,
  outOffset: number,
  scaleOffset: number,
): void {
  const at = op * WIDTHS.ops;
  if (ops[at + OP.outOffset] !== outOffset || ops[at + OP.scaleOffset] !== scaleOffset)
    throw fault(kernel, `is written to ${ops[at + OP.outOffset]}, not to its place ${outOffset}`);
  const isRight =
    ops[at + OP.rows] === kernel.rows &&
    ops[at + OP.cols] === kernel.cols &&
    ops[at + OP.scheme] === SCHEMES[kernel.scheme].code &&
    ops[at + OP.outDtype] === DTYPES[kernel.dtype].code &&
    ops[at + OP.mustBePositive] === (kernel.mustBePositive ? 1 : 0);
  if (!isRight) throw fault(kernel, "is written as something else");
}

/**
 * The op's slices follow each other from row 0 to the last, each made up with zero rows as its part says; those that must agree
 * are one beside the others. Zero rows of a vocabulary are the last.
 */
function checkSlices(stored: Stored, taken: Taken, program: LayerProgram, matrix: number, next: Reached): void {
  const { kernel } = taken;
  const { ops } = program;
  const at = next.ops * WIDTHS.ops;
  const first = next.slices;
  const count = ops[at + OP.sliceCount] ?? Number.NaN;
  const zeroRows = ops[at + OP.zeroRows] ?? Number.NaN;
  const expected = expectedSlices(kernel, count);
  if (ops[at + OP.firstSlice] !== first || count !== (kernel.mustAgree ? 1 : expected))
    throw fault(kernel, `it is written in ${countOf(count, "slice")}, of ${countOf(kernel.parts.length, "part")}`);
  let rows = 0;
  let toRow = 0;
  for (let index = 0; index < expected; index++) {
    const sliceRows = checkSlice(stored, taken, program, next, index, matrix, kernel.mustAgree ? 0 : toRow);
    if (!kernel.mustAgree || index === 0) {
      rows += sliceRows;
      toRow += madeUp(sliceRows, kernel.parts[index]);
    } else checkAgreement(kernel, program, next.agreements++, first, next.slices);
    next.slices++;
  }
  const constantRows = kernel.constant !== null && kernel.parts.length === 0 ? 1 : 0;
  const end = toRow + constantRows + (isVocabulary(kernel) ? zeroRows : 0);
  const isFull = rows + zeroRows + constantRows === kernel.rows && end === kernel.rows;
  if (!isFull || Number.isNaN(ops[at + OP.constant]) !== (constantRows === 0))
    throw fault(kernel, `has ${countOf(kernel.rows, "row")}, of which ${rows + zeroRows} are written`);
  checkRounding(kernel, program, at, { first, count });
}

/** A slice a part; only the last ranks may have nothing of a vocabulary but its padding. */
function expectedSlices(kernel: KernelTensor, count: number): number {
  return count === 0 && isVocabulary(kernel) ? 0 : kernel.parts.length;
}

function isVocabulary({ parts }: KernelTensor): boolean {
  return parts.length === 1 && parts[0]?.rule.kind === "vocabulary";
}

/** Rows or columns of a part's cut, with the zeros that it is made up with. */
function madeUp(size: number, part: Part | undefined): number {
  const padTo = part?.padTo ?? 1;
  return size + ((padTo - (size % padTo)) % padTo);
}

/** Values are rounded to what the plan says; not at all where they are of that dtype already. */
function checkRounding(
  kernel: KernelTensor,
  { ops, slices }: LayerProgram,
  op: number,
  { first, count }: { first: number; count: number },
): void {
  const wanted = kernel.roundTo === null ? -1 : DTYPES[kernel.roundTo].code;
  const dtypes = new Set<number | undefined>();
  for (let slice = first; slice < first + count; slice++) dtypes.add(slices[slice * WIDTHS.slices + SLICE.dtype]);
  // Where dtypes differ, and where codes are made values, the core has all of them as F32.
  const [found] = dtypes.size > 1 || dtypes.has(DTYPES.F8_E4M3.code) ? [DTYPES.F32.code] : dtypes;
  const rounded = ops[op + OP.roundDtype];
  if (rounded !== (found === wanted ? -1 : wanted))
    throw fault(kernel, `is rounded to dtype ${rounded}, not to ${kernel.roundTo}`);
}

function checkAgreement(
  kernel: KernelTensor,
  { agreements }: LayerProgram,
  row: number,
  first: number,
  other: number,
): void {
  const at = row * WIDTHS.agreements;
  if (agreements[at + AGREEMENT.slice] !== first || agreements[at + AGREEMENT.with] !== other)
    throw fault(kernel, `slices ${first} and ${other} of it are not compared`);
}

/** The slice lies inside its part, has its strides, dtype and scales, and goes to `toRow`; returns its rows. */
function checkSlice(
  stored: Stored,
  taken: Taken,
  program: LayerProgram,
  next: Reached,
  partIndex: number,
  matrix: number,
  toRow: number,
): number {
  const { kernel } = taken;
  const { slices } = program;
  const part = kernel.parts[partIndex];
  const tensor = part?.tensors[matrix] ?? -1;
  const bytes = stored.elementBytes[tensor];
  if (part === undefined || bytes === undefined) throw fault(kernel, `its part ${partIndex} comes from nowhere`);
  const { rowStride, colStride } = part;
  const at = next.slices * WIDTHS.slices;
  const rows = slices[at + SLICE.rows] ?? 0;
  const cols = slices[at + SLICE.cols] ?? 0;
  const offset = slices[at + SLICE.offset] ?? 0;
  const element = (offset - (stored.offset[tensor] ?? 0)) / bytes - (part.firsts[matrix] ?? 0);
  const transposed = isTransposed(part);
  const row = transposed ? element % colStride : Math.floor(element / rowStride);
  const col = transposed ? Math.floor(element / colStride) : element % rowStride;
  const isInside =
    Number.isInteger(element) &&
    row >= 0 &&
    col >= 0 &&
    rows > 0 &&
    cols > 0 &&
    row + rows <= part.rows &&
    col + cols <= part.cols;
  const isRight =
    slices[at + SLICE.rowStride] === rowStride * bytes &&
    slices[at + SLICE.colStride] === colStride * bytes &&
    slices[at + SLICE.dtype] === stored.dtype[tensor] &&
    program.files[slices[at + SLICE.file] ?? -1]?.path === stored.path[tensor];
  if (!isInside || !isRight)
    throw fault(kernel, `slice ${next.slices} of ${rows} × ${cols} at byte ${offset} is outside its tensor`);
  const zeroCols = program.ops[next.ops * WIDTHS.ops + OP.zeroCols];
  if (slices[at + SLICE.toRow] !== toRow || madeUp(cols, part) !== kernel.cols || zeroCols !== kernel.cols - cols)
    throw fault(
      kernel,
      `a slice of ${rows} × ${cols} goes to row ${slices[at + SLICE.toRow]}, of ${kernel.cols} columns row ${toRow} is next, ` +
        `${zeroCols} of them zero`,
    );
  const scale = slices[at + SLICE.scale];
  if (part.scales === null ? scale !== -1 : scale !== next.scales) throw fault(kernel, `a slice has scale ${scale}`);
  if (part.scales !== null) checkScale(stored, kernel, part.scales, program, next.scales++, matrix, row, col);
  take(taken, partIndex, matrix, row, rows, col, cols);
  return rows;
}

function checkScale(
  stored: Stored,
  kernel: KernelTensor,
  scales: NonNullable<Part["scales"]>,
  { scales: table, files }: LayerProgram,
  scale: number,
  matrix: number,
  row: number,
  col: number,
): void {
  const at = scale * WIDTHS.scales;
  const tensor = scales.tensors[matrix] ?? -1;
  const bytes = stored.elementBytes[tensor] ?? 0;
  const isRight =
    table[at + SCALE.offset] === (stored.offset[tensor] ?? -1) + (scales.firsts[matrix] ?? 0) * bytes &&
    table[at + SCALE.rowStride] === scales.rowStride * bytes &&
    table[at + SCALE.dtype] === stored.dtype[tensor] &&
    files[table[at + SCALE.file] ?? -1]?.path === stored.path[tensor] &&
    table[at + SCALE.blockRows] === scales.blockRows &&
    table[at + SCALE.blockCols] === scales.blockCols &&
    table[at + SCALE.firstRow] === scales.row + row &&
    table[at + SCALE.firstCol] === scales.col + col;
  if (!isRight) throw fault(kernel, `scale ${scale} is not that of its codes`);
}

/** The rank's rectangle is whole rows or whole columns, and begins where the last one ended, or is the last one again. */
function take(taken: Taken, index: number, matrix: number, row: number, rows: number, col: number, cols: number): void {
  const { kernel, ranges, replicas } = taken;
  const part = kernel.parts[index];
  const at = (matrix * kernel.parts.length + index) * RANGE.width;
  const ofRows = col === 0 && cols === part?.cols;
  const ofColumns = !ofRows && row === 0 && rows === part?.rows;
  const start = ofRows ? row : col;
  const length = ofRows ? rows : cols;
  const end = ranges[at + RANGE.end] ?? 0;
  const times = ranges[at + RANGE.times] ?? 0;
  const isAgain = end > 0 && start === ranges[at + RANGE.start] && start + length === end;
  const isNext = start === end && (end === 0 || times === replicas[index]);
  const sameAxis = end === 0 || ranges[at + RANGE.ofColumns] === (ofColumns ? 1 : 0);
  if ((!ofRows && !ofColumns) || !sameAxis || (!isAgain && !isNext))
    throw fault(kernel, `ranks leave out or share what begins at ${end} of a part: one takes what begins at ${start}`);
  ranges[at + RANGE.end] = start + length;
  ranges[at + RANGE.start] = start;
  ranges[at + RANGE.ofColumns] = ofColumns ? 1 : 0;
  ranges[at + RANGE.times] = isAgain ? times + 1 : 1;
}

/** All ranks together take each part whole, each element as often as the rule says; no rank has more experts than its due. */
function checkTaken({ kernel, counts, replicas, ranges }: Taken): void {
  const { experts, parts } = kernel;
  const most = counts[0] ?? 0;
  const isFair = counts.every((count, rank) => count <= (counts[rank - 1] ?? most) && most - count <= 1);
  const sum = counts.reduce((total, count) => total + count, 0);
  if (experts?.byRank === true && (!isFair || sum !== experts.count))
    throw fault(kernel, `its ${countOf(experts.count, "matrix", "matrices")} are dealt out as ${counts.join(", ")}`);
  for (let row = 0; row < ranges.length / RANGE.width; row++) {
    const at = row * RANGE.width;
    const index = row % parts.length;
    const part = parts[index];
    const whole = ranges[at + RANGE.ofColumns] === 1 ? part?.cols : part?.rows;
    if (ranges[at + RANGE.end] !== whole || ranges[at + RANGE.times] !== replicas[index])
      throw fault(kernel, `all ranks together take ${ranges[at + RANGE.end]} of ${whole} of a part, or not as often`);
  }
}

/** Each derived tensor reads what it says from its place, and writes to its own. */
function checkDerived(
  layer: PlanLayer,
  kernels: readonly KernelTensor[],
  { derived: table }: LayerProgram,
  places: Places,
): void {
  let at = 0;
  for (const kernel of kernels) {
    const { derived } = kernel;
    if (derived === null) continue;
    const from = layer.kernelTensors.find(({ name }) => name === derived.from);
    if (from === undefined) throw fault(kernel, `is made of ${derived.from}, which is not there`);
    const { heads, headRows, firstRow, transposed } = derived;
    const isInside = heads * headRows === from.rows && firstRow >= 0 && firstRow + kernel.rows <= headRows;
    const shape = transposed ? [heads, kernel.cols, kernel.rows] : [heads, kernel.rows, kernel.cols];
    const isShaped = kernel.cols === from.cols && shape.every((size, axis) => size === kernel.shape[axis]);
    const isReady = from.phase === "layer" && from.experts === null && from.derived === null;
    const expected: Record<keyof typeof DERIVED, number> = {
      scheme: SCHEMES[derived.scheme].code,
      weightOffset: placeOf(kernel, from.name, places).offset,
      weightDtype: DTYPES[from.dtype].code,
      scaleOffset: derived.scale === null ? -1 : placeOf(kernel, derived.scale, places).offset,
      outOffset: placeOf(kernel, kernel.name, places).offset,
      outDtype: DTYPES[kernel.dtype].code,
      heads,
      headRows,
      firstRow,
      rows: kernel.rows,
      cols: kernel.cols,
      transposed: transposed ? 1 : 0,
    };
    const isSame = Object.entries(expected).every(
      ([field, value]) => table[at + DERIVED[field as keyof typeof DERIVED]] === value,
    );
    if (!isInside || !isShaped || !isReady || !isSame)
      throw fault(
        kernel,
        `does not read rows ${firstRow} to ${firstRow + kernel.rows} of ${countOf(heads, "head")} of ${from.name}`,
      );
    at += WIDTHS.derived;
  }
  if (at !== table.length) throw planFault(`a program has ${table.length / WIDTHS.derived} derived tensors`, {});
}

function placeOf(kernel: KernelTensor, name: string, places: Places): ArenaTensor {
  const place = places.get(name);
  if (place === undefined) throw fault(kernel, `${name} has no place in the arena`);
  return place;
}

function fault({ name }: KernelTensor, what: string): LayercastError {
  return planFault(`${name}: ${what}`, { kernel_tensor: name });
}
