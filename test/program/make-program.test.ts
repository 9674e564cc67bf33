// One builder makes every program. What it makes of a checkpoint is held by the goldens and by the interpreter; here, that rows which
// come in any pieces are written as the whole is: each row from the same bytes, with the same scales, to the same place.

import { readdirSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { AGREEMENT_FIELDS, type LayerProgram, OP_FIELDS, SCALE_FIELDS, SLICE_FIELDS } from "../../native/native.js";
import { readCheckpointTable } from "../../orchestrator/checkpoint/checkpoint-table.js";
import { DTYPES } from "../../orchestrator/contract/dtype.js";
import type { Plan } from "../../orchestrator/contract/plan.js";
import { RECIPES, type Recipe, SCHEMES } from "../../orchestrator/contract/recipe.js";
import { planReload } from "../../orchestrator/planner/plan-reload.js";
import { layoutArena } from "../../orchestrator/program/arena-layout.js";
import { makeProgram, type Piece, type ProgramSource, type Write } from "../../orchestrator/program/make-program.js";
import { firstOf, tensorOf } from "../../orchestrator/program/rank-geometry.js";
import { type Matrix, matricesOfRank, matrixOf } from "../../orchestrator/program/rank-matrices.js";
import { rowsOf } from "./interpret-program.js";

const CHECKPOINTS = path.resolve(import.meta.dirname, "../fixtures/checkpoints");
const RANKS = [1, 2, 4].flatMap((ranks) => [false, true].map((expertParallel) => ({ ranks, expertParallel })));

/** The fixtures under every recipe; each under another size and placement, so that all are among them. */
const cases = readdirSync(CHECKPOINTS).flatMap((model, index) =>
  RECIPES.map((scheme, at) => ({ model, scheme, ...(RANKS[(index + at) % RANKS.length] ?? { ranks: 1 }) })),
);

/** null: the recipe or the size is not for this model. */
async function planOf(of: { model: string; scheme: Recipe; ranks: number; expertParallel?: boolean }) {
  const { model, scheme, ranks, expertParallel = false } = of;
  const { table, config } = await readCheckpointTable(path.join(CHECKPOINTS, model, "v1"), {
    allowedRoots: [CHECKPOINTS],
  });
  try {
    const asked = { tensorParallelSize: ranks, expertParallel, scheme, ignore: [], dtype: "auto" } as const;
    return planReload({ table, config, ...asked });
  } catch {
    return null;
  }
}

/** The plan's files, each window in pieces of at most so many rows. */
function piecewise({ source }: Plan, most: number): ProgramSource<Write> {
  return {
    files: [...source.files],
    dtypes: source.dtype,
    allowNonFinite: false,
    find({ geometry, matrix }, index, from, to) {
      const window = geometry.windows[index];
      if (window === undefined) return [];
      const tensor = tensorOf(window, matrix);
      const { bytes } = DTYPES[source.dtype[tensor] ?? "BF16"];
      const size = window.kind === "rows" ? most : window.rows;
      const pieces: Piece[] = [];
      for (let row = from; row < to; row += size) {
        const offset = (source.offset[tensor] ?? 0) + (firstOf(window, matrix) + row * window.rowStride) * bytes;
        const strides = { rowStride: window.rowStride * bytes, colStride: window.colStride * bytes };
        pieces.push({ from: row, to: Math.min(to, row + size), file: source.file[tensor] ?? -1, offset, ...strides });
      }
      return pieces;
    },
  };
}

/** The matrix whole, or in runs of as many rows as numbers say, as its recipe allows. */
function writesOf({ geometry, matrix }: Matrix, next: (() => number) | null): Write[] {
  const { rows, rowsTogether } = geometry;
  if (next === null || rowsTogether === "all") return [{ geometry, matrix, from: 0, to: rows }];
  const writes: Write[] = [];
  for (let from = 0; from < rows; ) {
    const to = Math.min(rows, from + (1 + (next() % Math.ceil(rows / rowsTogether))) * rowsTogether);
    writes.push({ geometry, matrix, from, to });
    from = to;
  }
  return writes;
}

/** By the place in the arena of each row: what is written there. */
function rowsWritten(program: LayerProgram): Map<number, string> {
  const rows = new Map<number, string>();
  const slices = rowsOf(SLICE_FIELDS, program.slices);
  for (const op of rowsOf(OP_FIELDS, program.ops)) {
    const ofOp = slices.slice(op.firstSlice, op.firstSlice + op.sliceCount);
    let empty = 0;
    for (let row = 0; row < op.rows; row++) {
      const slice = ofOp.find(({ toRow, rows: count }) => toRow <= row && row < toRow + count);
      if (slice === undefined) empty++;
      const from = slice === undefined ? "nothing" : rowRead(program, slice, row - slice.toRow, op.roundDtype);
      const { scheme, outDtype, cols, zeroCols, constant, mustBePositive } = op;
      const scales = op.scaleOffset === -1 ? -1 : op.scaleOffset + scalesBefore(scheme, row, cols);
      const what = [scheme, outDtype, cols, zeroCols, constant, mustBePositive, scales, from].join(" ");
      const place = op.outOffset + row * cols * (BYTES.get(outDtype) ?? 0);
      rows.set(place, rows.has(place) ? "twice" : what);
    }
    expect(empty).toBe(Number.isNaN(op.constant) ? op.zeroRows : op.rows);
  }
  return rows;
}

const BYTES = new Map<number, number>(Object.values(DTYPES).map(({ code, bytes }) => [code, bytes]));

/** Bytes of scales that lie before those of the row. */
function scalesBefore(scheme: number, row: number, cols: number): number {
  if (scheme === SCHEMES["fp8-channel"].code) return 4 * row;
  return scheme === SCHEMES["fp8-block"].code ? 4 * Math.floor(row / 128) * Math.ceil(cols / 128) : 0;
}

type Slice = ReturnType<typeof rowsOf<typeof SLICE_FIELDS>>[number];

/** Which bytes a row of a slice is, their dtype and scales, and whether they are rounded. */
function rowRead(program: LayerProgram, slice: Slice, row: number, roundDtype: number): string {
  const scale = rowsOf(SCALE_FIELDS, program.scales)[slice.scale];
  const pathOf = (file: number) => path.basename(program.files[file]?.path ?? "");
  const by =
    scale === undefined
      ? "no scales"
      : [pathOf(scale.file), scale.offset, scale.rowStride, scale.dtype, scale.blockRows, scale.blockCols]
          .concat([scale.firstRow + row, scale.firstCol])
          .join(" ");
  const stored = scale === undefined ? slice.dtype : DTYPES.F32.code;
  const isRounded = roundDtype !== -1 && roundDtype !== stored;
  const at = slice.offset + row * slice.rowStride;
  return [pathOf(slice.file), at, slice.colStride, slice.cols, slice.dtype, isRounded, by].join(" ");
}

/** Pairs of values that are compared. */
function compared(program: LayerProgram): string[] {
  const slices = rowsOf(SLICE_FIELDS, program.slices);
  const read = (index: number) => {
    const slice = slices[index];
    return slice === undefined ? "no slice" : rowRead(program, slice, 0, -1);
  };
  return rowsOf(AGREEMENT_FIELDS, program.agreements)
    .map((pair) => `${read(pair.slice)} and ${read(pair.with)}`)
    .sort();
}

describe("rows of a matrix, written in any runs and out of any pieces,", () => {
  it("are written as in the whole matrix, under every recipe, size and placement of experts", async () => {
    let state = 7;
    const next = () => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return state >>> 8;
    };
    const tried = new Set<string>();
    for (const one of cases) {
      const plan = await planOf(one);
      if (plan === null) continue;
      tried.add(one.scheme).add(`${one.ranks}`);
      const rank = next() % one.ranks;
      const ofRank = matricesOfRank(plan.layout, layoutArena(plan.layout, rank), rank);
      const matrices = [...ofRank.kernelOf.keys()].filter(() => next() % 4 === 0).map((at) => matrixOf(ofRank, at));
      const whole = makeProgram(
        matrices.flatMap((matrix) => writesOf(matrix, null)),
        [],
        piecewise(plan, Number.POSITIVE_INFINITY),
      );
      const writes = matrices.flatMap((matrix) => writesOf(matrix, next));
      const order = writes.map((write) => ({ write, at: next() })).sort((a, b) => a.at - b.at);
      const inParts = makeProgram(
        order.map(({ write }) => write),
        [],
        piecewise(plan, 1 + (next() % 7)),
      );
      expect(inParts.bytes).toBe(whole.bytes);
      expect(rowsWritten(inParts.program)).toEqual(rowsWritten(whole.program));
      expect(compared(inParts.program)).toEqual(compared(whole.program));
    }
    expect([...tried].sort()).toEqual([...RECIPES, "1", "2", "4"].sort());
  });
});

describe("a rank's matrices", () => {
  it("share the windows of their kernel tensor, however many experts it has, and the layout's own lists", async () => {
    const plan = await planOf({ model: "tiny-deepseek-v3", scheme: "none", ranks: 2 });
    if (plan === null) throw new Error("no plan");
    const { kernels, kernelOf } = matricesOfRank(plan.layout, layoutArena(plan.layout, 1), 1);
    const experts = kernels.filter(({ kernel }) => kernel.experts !== null);
    expect(experts.length).toBeGreaterThan(0);
    expect(kernelOf.length).toBeGreaterThan(kernels.length);
    for (const { kernel, windows, count } of experts) {
      expect(count).toBe(kernel.experts?.count);
      expect(windows).toHaveLength(kernel.parts.length);
      windows.forEach((window, index) => {
        expect(window.tensors).toBe(kernel.parts[index]?.tensors);
      });
    }
  });
});
