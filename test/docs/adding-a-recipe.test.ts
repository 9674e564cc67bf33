// The code of docs/adding-a-recipe.md is put into a copy of the program and compiled; its numbers are compared with what the
// page's definition comes to in doubles, worked out here.

import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Arena, LayerProgram, NativeCore } from "../../native/native.js";
import { DTYPES } from "../../orchestrator/contract/dtype.js";
import type { ArenaLayout, Plan } from "../../orchestrator/contract/plan.js";
import type { Recipe } from "../../orchestrator/contract/recipe.js";
import type { Find, Write } from "../../orchestrator/program/make-program.js";
import type { Matrix } from "../../orchestrator/program/rank-matrices.js";
import type { RowRange } from "../../orchestrator/program/row-ranges.js";
import { channelProgram } from "../native/channel-program.js";
import { copyWithExample, type Example } from "./recipe-example.js";

const SCHEME = "fp8-channel-pow2" as Recipe;
const CODE = 4;
const FIXTURES = join(import.meta.dirname, "../fixtures/checkpoints");
const RANKS = 2;
const NVCC = spawnSync("nvcc", ["--version"]).status === 0;
const COMPILING_MS = 300_000;

let example: Example;
let core: NativeCore;
let directory: string;
beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), "layercast-recipe-"));
  example = await copyWithExample("docs/adding-a-recipe.md");
  await example.build("layercast");
  const native = await example.load<typeof import("../../native/native.js")>("native/native.js");
  core = native.loadNative();
}, COMPILING_MS);
afterAll(() => {
  example?.remove();
  rmSync(directory, { recursive: true });
});

/** The values of E4M3's codes from 0 to 448. */
const MAGNITUDES = Array.from({ length: 127 }, (_, code) =>
  code < 8 ? code * 2 ** -9 : (8 + (code % 8)) * 2 ** (Math.floor(code / 8) - 10),
);

/** The nearest code, the even one of two that are as near; its sign is the value's. */
function codeOf(value: number): number {
  const distance = (code: number) => Math.abs((MAGNITUDES[code] ?? 0) - Math.abs(value));
  let nearest = 0;
  for (let code = 1; code < MAGNITUDES.length; code++) {
    const closer = distance(code) - distance(nearest);
    if (closer < 0 || (closer === 0 && code % 2 === 0)) nearest = code;
  }
  return nearest + (value < 0 || Object.is(value, -0) ? 0x80 : 0);
}

/** The first power of two from 2^-17 on that is not below amax / 448 in F32. */
function scaleOf(row: readonly number[]): number {
  let scale = 2 ** -17;
  while (scale < Math.fround(Math.max(...row.map(Math.abs)) / 448)) scale *= 2;
  return scale;
}

function quantized(rows: readonly number[][]): { codes: number[]; scales: number[] } {
  const scales = rows.map(scaleOf);
  return { codes: rows.flatMap((row, index) => row.map((value) => codeOf(value / (scales[index] ?? 1)))), scales };
}

function floatsOf(bytes: Buffer): number[] {
  return Array.from({ length: bytes.length / 4 }, (_, index) => bytes.readFloatLE(4 * index));
}

const bf16Of = (bytes: Buffer) =>
  Array.from({ length: bytes.length / 2 }, (_, index) => {
    const word = Buffer.alloc(4);
    word.writeUInt16LE(bytes.readUInt16LE(2 * index), 2);
    return word.readFloatLE();
  });

const rowsOf = (values: readonly number[], cols: number) =>
  Array.from({ length: values.length / cols }, (_, row) => values.slice(row * cols, (row + 1) * cols));

let arenas = 0;
function newArena(dataBytes: number): { arena: Arena; path: string } {
  const path = join(directory, `arena${arenas++}`);
  const headerBytes = new Uint8Array(4096).fill(0x20);
  const device = core.openDevice("cpu");
  return { arena: core.openArena({ device, path, mode: "create", headerBytes, dataBytes, ipcHandle: "" }), path };
}

/** The arena's tensor bytes once the programs have run, one after the other. */
async function bytesOf(programs: readonly LayerProgram[], dataBytes: number): Promise<Buffer> {
  const { arena, path } = newArena(dataBytes);
  for (const program of programs) await core.runLayer(arena, "live", program, core.createCancel());
  core.closeArena(arena);
  return readFileSync(path).subarray(4096);
}

interface Planned {
  plan: Plan;
  arena: ArenaLayout;
  rank: number;
}

/** A fixture, planned by the copy. */
async function planned(name: string, scheme: Recipe, rank: number): Promise<Planned> {
  const load = example.load.bind(example);
  const checkpoints = await load<typeof import("../../orchestrator/checkpoint/checkpoint-table.js")>(
    "orchestrator/checkpoint/checkpoint-table.js",
  );
  const planner = await load<typeof import("../../orchestrator/planner/plan-reload.js")>(
    "orchestrator/planner/plan-reload.js",
  );
  const { checkPlan } = await load<typeof import("../../orchestrator/planner/check/check-plan.js")>(
    "orchestrator/planner/check/check-plan.js",
  );
  const { layoutArena } = await load<typeof import("../../orchestrator/program/arena-layout.js")>(
    "orchestrator/program/arena-layout.js",
  );
  const { table, config } = await checkpoints.readCheckpointTable(join(FIXTURES, name), { allowedRoots: [FIXTURES] });
  const how = { tensorParallelSize: RANKS, expertParallel: false, ignore: [], dtype: "auto" } as const;
  const plan = planner.planReload({ table, config, scheme, ...how });
  checkPlan(plan, table);
  return { plan, arena: layoutArena(plan.layout, rank), rank };
}

function reloaded(of: Planned): Promise<Buffer> {
  return written(of, ({ geometry }) => [{ from: 0, to: geometry.rows }]);
}

/** The same by the programs of a push in which rows come in pieces of `together`, the last first. */
function pushed(of: Planned, together: number): Promise<Buffer> {
  return written(of, (matrix) => pieces(matrix, together).reverse());
}

async function written({ plan, arena, rank }: Planned, rangesOf: (matrix: Matrix) => RowRange[]): Promise<Buffer> {
  const { matricesOfRank, matrixOf } = await example.load<typeof import("../../orchestrator/program/rank-matrices.js")>(
    "orchestrator/program/rank-matrices.js",
  );
  const { makeProgram } = await example.load<typeof import("../../orchestrator/program/make-program.js")>(
    "orchestrator/program/make-program.js",
  );
  const matrices = matricesOfRank(plan.layout, arena, rank);
  const writes = [...matrices.kernelOf.keys()].flatMap((index) => {
    const matrix = matrixOf(matrices, index);
    return rangesOf(matrix).map((range) => ({ ...matrix, ...range }));
  });
  const { files, dtype } = plan.source;
  const source = { find: findIn(plan), files: [...files], dtypes: dtype, allowNonFinite: false };
  return bytesOf([makeProgram(writes, [], source).program], arena.dataBytes);
}

function pieces({ geometry: { rows, rowsTogether } }: Matrix, together: number): RowRange[] {
  if (rowsTogether === "all") return [{ from: 0, to: rows }];
  const size = together * rowsTogether;
  const count = Math.ceil(rows / size);
  return Array.from({ length: count }, (_, piece) => ({ from: piece * size, to: Math.min(rows, (piece + 1) * size) }));
}

function findIn({ source }: Plan): Find<Write> {
  return ({ geometry, matrix }, index, from, to) => {
    const window = geometry.windows[index];
    if (window === undefined) return [];
    const tensor = window.tensors[matrix] ?? -1;
    const { bytes } = DTYPES[source.dtype[tensor] ?? "BF16"];
    const first = (window.firsts[matrix] ?? 0) + window.shift;
    const offset = (source.offset[tensor] ?? 0) + (first + from * window.rowStride) * bytes;
    const strides = { rowStride: window.rowStride * bytes, colStride: window.colStride * bytes };
    return [{ from, to, file: source.file[tensor] ?? 0, offset, ...strides }];
  };
}

function tensorIn({ arena }: Planned, bytes: Buffer, name: string): { bytes: Buffer; shape: number[] } {
  const tensor = arena.tensors.find((one) => one.name === name);
  if (tensor === undefined) throw new Error(`the arena has no ${name}`);
  return { bytes: bytes.subarray(tensor.offset, tensor.offset + tensor.bytes), shape: tensor.shape };
}

describe("the recipe of docs/adding-a-recipe.md", () => {
  const largest = 2 ** 128 - 2 ** 104;
  it.each([
    ["rows of zeros have the least scale, and codes with their signs", [0, -0, 0, 0], [-0, -0, -0, 0]],
    [
      "rows near zero have it too",
      [2 ** -149, -(2 ** -126), 2 ** -26, 3 * 2 ** -27],
      [2 ** -18, 448 * 2 ** -18, 0, 1e-30],
    ],
    ["a power of two stays, the next number is rounded up", [448, -448, 1, 27], [448 * (1 + 2 ** -22), -448, 1, 27]],
    ["halfway between two codes the even one is taken", [448, 17, 19, -21], [-448, 2 ** -10, 3 * 2 ** -10, 2.125]],
    ["the greatest numbers have codes", [largest, -largest, largest / 2, 2 ** 100], [2 ** 127, -1, 2 ** 119, 2 ** 115]],
  ])("%s", async (_, ...given) => {
    const rows = given.map((row) => row.map(Math.fround));
    const program = channelProgram(join(directory, "values"), rows.flat());
    program.ops[0] = CODE;
    const bytes = await bytesOf([program], 512);
    const expected = quantized(rows);
    expect(floatsOf(bytes.subarray(256, 264))).toEqual(expected.scales);
    expect([...bytes.subarray(0, 8)]).toEqual(expected.codes);
  });

  it.each(["tiny-llama/v1", "edge-llama/v1"])("reloads %s: every weight is what the definition says", async (name) => {
    for (let rank = 0; rank < RANKS; rank++) {
      const [plain, coded] = [await planned(name, "none", rank), await planned(name, SCHEME, rank)];
      const [values, codes] = [await reloaded(plain), await reloaded(coded)];
      const kernels = coded.plan.layout.layers.flatMap(({ kernelTensors }) => kernelTensors);
      const weights = kernels.filter(({ scheme }) => scheme === SCHEME);
      expect(weights.length).toBeGreaterThan(7);
      for (const { name: weight, scale } of weights) {
        const held = tensorIn(plain, values, weight);
        const expected = quantized(rowsOf(bf16Of(held.bytes), held.shape[1] ?? 1));
        const scales = tensorIn(coded, codes, `${weight}_scale`);
        expect([scale?.name, scales.shape]).toEqual([`${weight}_scale`, [held.shape[0], 1]]);
        expect(floatsOf(scales.bytes)).toEqual(expected.scales);
        expect([...tensorIn(coded, codes, weight).bytes]).toEqual(expected.codes);
      }
    }
  });

  it("comes to the same when a push brings its rows one by one, or some together", async () => {
    for (let rank = 0; rank < RANKS; rank++) {
      const coded = await planned("tiny-llama/v1", SCHEME, rank);
      const whole = await reloaded(coded);
      for (const together of [1, 7]) expect((await pushed(coded, together)).equals(whole)).toBe(true);
    }
  });

  it(
    "holds in the conformance suite, against the reference that the page adds",
    async () => {
      await example.build("layercast_conformance");
      const last = await example.run("layercast_conformance", ["--backend", "cpu", "--quick", "--scheme", SCHEME]);
      expect(last).toMatch(/^[1-9]\d{2,} passed, 0 failed$/);
    },
    COMPILING_MS,
  );

  it.skipIf(!NVCC)(
    "compiles for a GPU, where there is an nvcc to say so",
    async () => {
      for (const file of ["quantize_fp8_channel_pow2.cu", "run.cc"]) expect(await example.compileCuda(file)).toBe("");
    },
    COMPILING_MS,
  );
});
