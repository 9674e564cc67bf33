// A small program for the tests of the bridge, and what comes of it.

import { statSync, writeFileSync } from "node:fs";
import { type LayerProgram, OP_FIELDS, type ProgramFile, SLICE_FIELDS } from "../../native/native.js";
import { DTYPES } from "../../orchestrator/contract/dtype.js";
import { SCHEMES } from "../../orchestrator/contract/recipe.js";

export function planned(path: string): ProgramFile {
  const status = statSync(path, { bigint: true });
  const [mtimeNs, inode] = [String(status.mtimeNs), String(status.ino)];
  return { path, sizeBytes: Number(status.size), mtimeNs, inode };
}

export type Row<Fields extends readonly string[]> = Record<Fields[number], number>;

export function numbers<Fields extends readonly string[]>(fields: Fields, rows: Row<Fields>[]): Float64Array {
  return new Float64Array(rows.flatMap((row) => fields.map((field) => row[field as Fields[number]])));
}

/** Two rows of four F32 values, written to `path`, to be quantized by channel: codes at 0, scales at 256. */
export function channelProgram(path: string, values: number[]): LayerProgram & { files: [ProgramFile] } {
  writeFileSync(path, Buffer.from(new Float32Array(values).buffer));
  return {
    files: [planned(path)],
    ops: numbers(OP_FIELDS, [
      {
        scheme: SCHEMES["fp8-channel"].code,
        outDtype: DTYPES.F8_E4M3.code,
        roundDtype: -1,
        rows: 2,
        cols: 4,
        outOffset: 0,
        scaleOffset: 256,
        firstSlice: 0,
        sliceCount: 1,
        zeroRows: 0,
        zeroCols: 0,
        constant: Number.NaN,
        mustBePositive: 0,
      },
    ]),
    slices: numbers(SLICE_FIELDS, [
      {
        file: 0,
        offset: 0,
        rowStride: 16,
        rows: 2,
        cols: 4,
        dtype: DTYPES.F32.code,
        toRow: 0,
        colStride: 4,
        scale: -1,
      },
    ]),
    scales: new Float64Array(),
    agreements: new Float64Array(),
    derived: new Float64Array(),
    allowNonFinite: false,
  };
}

export const VALUES = [448, -448, 1, 0, 896, 2, -2, 0];
export const CODES = [0x7e, 0xfe, 0x38, 0, 0x7e, 0x38, 0xb8, 0];
export const SPANS = [
  { offset: 0, bytes: 8 },
  { offset: 256, bytes: 8 },
];
