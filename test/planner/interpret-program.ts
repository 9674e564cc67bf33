// Runs a program of scheme `none` over bytes in memory, as slowly and as plainly as can be: the tests' own idea of what the
// native core does with one. Counts how often each byte of the arena is written.

import { type LayerProgram, OP_FIELDS, SLICE_FIELDS } from "../../native/native.js";
import { DTYPES } from "../../orchestrator/contract/dtype.js";
import { LayercastError } from "../../orchestrator/contract/errors.js";
import type { ArenaLayout, Plan } from "../../orchestrator/contract/plan.js";
import { createResolver } from "../../orchestrator/planner/resolve.js";

export interface FilledArena {
  bytes: Uint8Array;
  /** Times each byte was written. */
  writes: Uint8Array;
}

/** The whole of a rank's arena: all layers, both phases. */
export function fillArena(
  plan: Plan,
  arena: ArenaLayout,
  rank: number,
  files: ReadonlyMap<string, Uint8Array>,
): FilledArena {
  const filled = { bytes: new Uint8Array(arena.dataBytes).fill(0xa5), writes: new Uint8Array(arena.dataBytes) };
  const resolve = createResolver(plan.layout, arena);
  const layers = [...plan.layout.layers.keys()];
  for (const phase of ["layer", "finalize"] as const) {
    interpret(resolve(plan.source, { layers, rank, phase, allowNonFinite: false }).program, files, filled);
  }
  return filled;
}

type Row<Fields extends readonly string[]> = Record<Fields[number], number>;

export function rowsOf<const Fields extends readonly string[]>(fields: Fields, table: Float64Array): Row<Fields>[] {
  return Array.from({ length: table.length / fields.length }, (_, row) => {
    const entries = fields.map((field, at) => [field, table[row * fields.length + at]]);
    return Object.fromEntries(entries) as Row<Fields>;
  });
}

function interpret(program: LayerProgram, files: ReadonlyMap<string, Uint8Array>, arena: FilledArena): void {
  const slices = rowsOf(SLICE_FIELDS, program.slices);
  for (const op of rowsOf(OP_FIELDS, program.ops)) {
    if (op.scheme !== 0 || op.roundDtype !== -1) throw new Error("the interpreter only copies");
    const outBytes = bytesOf(op.outDtype);
    const write = (row: number, col: number, element: Uint8Array) => {
      const at = op.outOffset + (row * op.cols + col) * outBytes;
      arena.bytes.set(element, at);
      for (let byte = at; byte < at + outBytes; byte++) arena.writes[byte] = (arena.writes[byte] ?? 0) + 1;
    };
    for (const slice of slices.slice(op.firstSlice, op.firstSlice + op.sliceCount)) {
      const file = files.get(program.files[slice.file]?.path ?? "");
      if (file === undefined) throw new Error("the program names a file that is not there");
      const inBytes = bytesOf(slice.dtype);
      for (let row = 0; row < slice.rows; row++) {
        for (let col = 0; col < slice.cols; col++) {
          const at = slice.offset + row * slice.rowStride + col * inBytes;
          const element = file.subarray(at, at + inBytes);
          if (element.byteLength !== inBytes) throw new Error("a slice reads past its file");
          write(slice.toRow + row, col, op.outDtype === slice.dtype ? element : widened(element, slice.dtype));
        }
      }
    }
    const fill = Number.isNaN(op.constant) ? new Uint8Array(outBytes) : f32(op.constant);
    const filledRows = Number.isNaN(op.constant) ? op.zeroRows : op.rows;
    for (let row = op.rows - filledRows; row < op.rows; row++) {
      for (let col = 0; col < op.cols; col++) write(row, col, fill);
    }
  }
}

/** BF16 as F32. */
function widened(element: Uint8Array, dtype: number): Uint8Array {
  if (dtype !== DTYPES.BF16.code) throw new LayercastError("internal", "the interpreter widens BF16 only");
  return Uint8Array.of(0, 0, element[0] ?? 0, element[1] ?? 0);
}

function f32(value: number): Uint8Array {
  return new Uint8Array(Float32Array.of(value).buffer);
}

function bytesOf(code: number): number {
  const row = Object.values(DTYPES).find((dtype) => dtype.code === code);
  if (row === undefined) throw new Error(`no dtype has code ${code}`);
  return row.bytes;
}
