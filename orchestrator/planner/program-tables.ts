// The tables of a program (native/native.ts), by column: rows of numbers, one a field, so that a layer of some thousand slices
// is a few arrays and not some thousand objects.

import { AGREEMENT_FIELDS, DERIVED_FIELDS, OP_FIELDS, SCALE_FIELDS, SLICE_FIELDS } from "../../native/native.js";

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

/** Numbers a row. */
export const WIDTHS = {
  ops: OP_FIELDS.length,
  slices: SLICE_FIELDS.length,
  scales: SCALE_FIELDS.length,
  agreements: AGREEMENT_FIELDS.length,
  derived: DERIVED_FIELDS.length,
} as const;
