// Finds the scales that lie beside FP8 codes in a checkpoint, under the names that quantizers write, and tells by their shape
// what each is for: a block of 128 × 128 codes, a row, or all of a matrix. What a recipe makes of them is not said here.

import { isScaleDType, SCALE_DTYPES } from "../contract/dtype.js";
import { LayercastError } from "../contract/errors.js";
import type { CheckpointTable, CheckpointTensor, PartScales } from "../contract/plan.js";
import { SCALE_BLOCK, type Scheme } from "../contract/recipe.js";
import type { PartSource } from "./architectures/family.js";

/** Matrices of scales: one a matrix of codes. */
export interface ScaleMatrices {
  /** The same one again and again where it holds those of all experts. */
  tensors: CheckpointTensor[];
  /** First element in each. */
  firsts: number[];
  /** In elements. */
  rowStride: number;
}

export interface StoredScales extends ScaleMatrices {
  /** The scheme that has its scales like this. */
  scheme: Extract<Scheme, "fp8-tensor" | "fp8-channel" | "fp8-block">;
  /** One scale of the layer's input a matrix, where there are any. */
  inputs: ScaleMatrices | null;
}

/** Those of one part's tensors, each F8_E4M3 and of one shape. */
export function findStoredScales(codes: readonly CheckpointTensor[], table: CheckpointTable): StoredScales {
  const first = codes[0];
  if (first === undefined) throw new LayercastError("internal", "A part has no tensors.");
  const suffix = SUFFIXES.find((one) => table.tensors.has(first.name + one));
  if (suffix === undefined) throw scalesMissing(first, SUFFIXES);
  const tensors = besideEach(codes, (name) => name + suffix, suffix, table);
  const { scheme, firstOf, rowStride } = geometryOf(tensors, first);
  const firsts = codes.map((_, matrix) => firstOf(matrix));
  return { scheme, tensors, firsts, rowStride, inputs: findInputScales(codes, table) };
}

function findInputScales(codes: readonly CheckpointTensor[], table: CheckpointTable): ScaleMatrices | null {
  const first = codes[0];
  if (first === undefined || !table.tensors.has(inputScaleName(first.name))) return null;
  const tensors = besideEach(codes, inputScaleName, "input_scale", table);
  const { scheme, firstOf, rowStride } = geometryOf(tensors, first);
  if (scheme !== "fp8-tensor") throw wrongShape(tensors[0] ?? first, first, [[], [1]]);
  return { tensors, firsts: codes.map((_, matrix) => firstOf(matrix)), rowStride };
}

/** `x.weight` has `x.input_scale`, also among kernel tensors; what is no `weight` has the words at its end. */
export function inputScaleName(name: string): string {
  return name.endsWith("weight") ? `${name.slice(0, -"weight".length)}input_scale` : `${name}_input_scale`;
}

/** Whether it can be of `inputScaleName`. */
export function isInputScaleName(name: string): boolean {
  return name.endsWith("input_scale");
}

/** The weights that an input scale of this name can be beside. */
export function weightsOfInputScale(name: string): string[] {
  const before = name.slice(0, -"input_scale".length);
  return [`${before}weight`, before.replace(/_$/, "")];
}

/** Why such a tensor is skipped where codes become values. */
export const INPUT_SCALE_REASON = "a scale of activations: of use only as stored";

/** Why it is skipped where the weights beside it are values. */
export const LEFTOVER_INPUT_SCALE_REASON = "a scale of activations, left over: the weights beside it are no codes";

function besideEach(
  codes: readonly CheckpointTensor[],
  nameOf: (codes: string) => string,
  what: string,
  table: CheckpointTable,
): CheckpointTensor[] {
  return codes.map((tensor) => {
    const scale = table.tensors.get(nameOf(tensor.name));
    if (scale === undefined) throw scalesMissing(tensor, [what]);
    if (!isScaleDType(scale.dtype))
      throw new LayercastError(
        "unsupported_dtype",
        `${scale.name} is ${scale.dtype}; scales must be ${SCALE_DTYPES.join(", ")}. ` +
          "Submit the checkpoint as it was before quantizing.",
        { tensor: scale.name, dtype: scale.dtype },
      );
    return scale;
  });
}

interface Geometry {
  scheme: StoredScales["scheme"];
  /** First element of the scales of a matrix. */
  firstOf: (matrix: number) => number;
  rowStride: number;
}

/** What scales of this shape are for, and where those of each matrix begin; all the tensors must be of one shape. */
function geometryOf(scales: readonly CheckpointTensor[], codes: CheckpointTensor): Geometry {
  const stacked = codes.shape.length === 3 ? codes.shape.slice(0, 1) : [];
  const [rows = 1, cols = 1] = codes.shape.slice(-2);
  const blocks = [Math.ceil(rows / SCALE_BLOCK), Math.ceil(cols / SCALE_BLOCK)];
  const [blockRows = 1, blockCols = 1] = blocks;
  const start = (elements: number) => (matrix: number) => (stacked.length === 0 ? 0 : matrix * elements);
  const known: (Geometry & { shape: number[] })[] = [
    { shape: [], scheme: "fp8-tensor", firstOf: () => 0, rowStride: 1 },
    { shape: [1], scheme: "fp8-tensor", firstOf: () => 0, rowStride: 1 },
    { shape: [...stacked], scheme: "fp8-tensor", firstOf: start(1), rowStride: 1 },
    // Before the next, for [1, 1] is the one block of a small matrix.
    {
      shape: [...stacked, ...blocks],
      scheme: "fp8-block",
      firstOf: start(blockRows * blockCols),
      rowStride: blockCols,
    },
    { shape: [...stacked, 1, 1], scheme: "fp8-tensor", firstOf: start(1), rowStride: 1 },
    { shape: [...stacked, rows, 1], scheme: "fp8-channel", firstOf: start(rows), rowStride: 1 },
    { shape: [...stacked, rows], scheme: "fp8-channel", firstOf: start(rows), rowStride: 1 },
    { shape: [...stacked, 1, rows], scheme: "fp8-channel", firstOf: start(rows), rowStride: 1 },
  ];
  const isOne =
    ({ shape }: CheckpointTensor) =>
    (one: { shape: number[] }) =>
      one.shape.length === shape.length && one.shape.every((size, axis) => size === shape[axis]);
  const first = scales[0];
  const geometry = first === undefined ? undefined : known.find(isOne(first));
  const shapes = known.map(({ shape }) => shape);
  if (first === undefined || geometry === undefined) throw wrongShape(first ?? codes, codes, shapes);
  const other = scales.find((scale) => !isOne(scale)(first));
  if (other !== undefined) throw wrongShape(other, codes, [first.shape]);
  return geometry;
}

/** The part's scales for the native core, which makes values of the codes with them. */
export function dequantizing(
  scales: StoredScales,
  codes: CheckpointTensor,
  origin: { row: number; col: number },
  indexOf: (tensor: CheckpointTensor) => number,
): PartScales {
  const [rows = 1, cols = 1] = codes.shape.slice(-2);
  const block = {
    "fp8-tensor": [rows, cols],
    "fp8-channel": [1, cols],
    "fp8-block": [SCALE_BLOCK, SCALE_BLOCK],
  }[scales.scheme];
  const [blockRows = 1, blockCols = 1] = block;
  const { firsts, rowStride } = scales;
  return { tensors: scales.tensors.map(indexOf), firsts, rowStride, blockRows, blockCols, ...origin };
}

/** Row and column at which a part begins in the matrix of codes that its scales are for. */
export function originInMatrix({ view }: PartSource, codes: CheckpointTensor): { row: number; col: number } {
  const [rows = 1, cols = 1] = codes.shape.slice(-2);
  const first = view?.first ?? 0;
  const origin = { row: Math.floor(first / cols), col: first % cols };
  const isPlain = view === undefined || (view.colStride === 1 && view.rowStride === cols);
  const stride = view?.expertStride ?? rows * cols;
  if (!isPlain || origin.row >= rows || stride !== rows * cols)
    throw new LayercastError(
      "unsupported_recipe",
      `${codes.name} of shape [${codes.shape}] holds FP8 codes transposed, which are not supported. ` +
        "Submit the checkpoint as it was before quantizing.",
      { tensor: codes.name },
    );
  return origin;
}

function scalesMissing({ name }: CheckpointTensor, suffixes: readonly string[]): LayercastError {
  const names = suffixes.map((suffix) => (suffix === "input_scale" ? inputScaleName(name) : name + suffix));
  return new LayercastError(
    "tensor_missing",
    `${name} is F8_E4M3, but the checkpoint has no ${names.join(" and no ")}: codes without scales mean nothing. ` +
      "Check that the checkpoint is complete.",
    { tensors: names.slice(0, 1), count: 1 },
  );
}

function wrongShape(scale: CheckpointTensor, codes: CheckpointTensor, shapes: readonly number[][]): LayercastError {
  const expected = shapes.map((shape) => `[${shape.join(", ")}]`);
  const { name, shape } = scale;
  return new LayercastError(
    "shape_mismatch",
    `${name} has shape [${shape.slice(0, 8).join(", ")}]; scales of ${codes.name} of shape [${codes.shape.join(", ")}] ` +
      `can have ${[...new Set(expected)].join(" or ")}. Check that the two belong together.`,
    { tensor: name, expected: shapes, found: shape.slice(0, 8) },
  );
}

/** The first that the checkpoint has counts; a second would be unexpected. */
const SUFFIXES = ["_scale_inv", "_scale"] as const;
