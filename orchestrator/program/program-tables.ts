// The tables of a program (native/native.ts), by column: rows of numbers, one a field, so that a layer of some thousand slices
// is a few arrays and not some thousand objects.

import { AGREEMENT_FIELDS, DERIVED_FIELDS, OP_FIELDS, SCALE_FIELDS, SLICE_FIELDS } from "../../native/native.js";
import { DTYPES } from "../contract/dtype.js";

/** Where in a row each field stands. */
type Columns<Fields extends readonly string[]> = Readonly<Record<Fields[number], number>>;

function columnsOf<const Fields extends readonly string[]>(fields: Fields): Columns<Fields> {
  return Object.fromEntries(fields.map((field, column) => [field, column])) as Columns<Fields>;
}

export const OP = columnsOf(OP_FIELDS);
export const SLICE = columnsOf(SLICE_FIELDS);
export const SCALE = columnsOf(SCALE_FIELDS);
export const AGREEMENT = columnsOf(AGREEMENT_FIELDS);
export const DERIVED = columnsOf(DERIVED_FIELDS);

/** Of each slice of a program, what it is of a checkpoint tensor, in elements; no part of the program. */
const ORIGIN_FIELDS = ["tensor", "first", "rowStride", "colStride"] as const;
export const ORIGIN = columnsOf(ORIGIN_FIELDS);

/** Numbers a row. */
export const WIDTHS = {
  ops: OP_FIELDS.length,
  slices: SLICE_FIELDS.length,
  scales: SCALE_FIELDS.length,
  agreements: AGREEMENT_FIELDS.length,
  derived: DERIVED_FIELDS.length,
  origins: ORIGIN_FIELDS.length,
} as const;

/**
 * Code of the dtype in which the core has the values of an op's slices: F32 where they have different dtypes, or where they are
 * codes that are made values; else that of the slices.
 */
export function valuesDType(slices: ArrayLike<number>, firstSlice: number, sliceCount: number): number {
  const dtypeAt = (slice: number) => slices[slice * WIDTHS.slices + SLICE.dtype] ?? -1;
  const first = dtypeAt(firstSlice);
  for (let slice = firstSlice + 1; slice < firstSlice + sliceCount; slice++)
    if (dtypeAt(slice) !== first) return DTYPES.F32.code;
  return first === DTYPES.F8_E4M3.code ? DTYPES.F32.code : first;
}
