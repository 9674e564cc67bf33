// Proves that every code keeps its scale: scales that make values of codes are those of the same tensor and cover it, and where
// codes stay as they are stored each rank's scales are cut where its codes are.

import type { KernelTensor, Part, Plan, PlanLayer } from "../../contract/plan.js";
import { SCALE_BLOCK } from "../../contract/recipe.js";
import { cutPart } from "../../program/cut-part.js";
import { windowOf } from "./check-windows.js";
import { planFault } from "./plan-fault.js";

export function checkScales(plan: Plan, layer: PlanLayer): void {
  for (const kernel of layer.kernelTensors) {
    if (kernel.dtype === "F8_E4M3" && kernel.scheme === "none") checkKeptCodes(plan, kernel, layer);
    for (const part of kernel.parts) if (part.scales !== null) checkDequantized(plan, kernel, part, part.scales);
  }
}

/** The scales of one matrix of codes. */
interface Grid {
  rows: number;
  cols: number;
}

function gridOf(shape: readonly number[], blockRows: number, blockCols: number): Grid {
  const [rows = 1, cols = 1] = shape.slice(-2);
  return { rows: Math.ceil(rows / blockRows), cols: Math.ceil(cols / blockCols) };
}

function checkDequantized(plan: Plan, kernel: KernelTensor, part: Part, scales: NonNullable<Part["scales"]>): void {
  for (let matrix = 0; matrix < part.tensors.length; matrix++) {
    const { codes, scale, row, col, index } = locate(plan, kernel, part, scales.tensors, matrix);
    checkBlock(kernel, codes.shape, scales);
    const grid = gridOf(codes.shape, scales.blockRows, scales.blockCols);
    checkGrid(kernel, grid, scale, scales.firsts[matrix], index);
    if (scales.rowStride !== grid.cols || scales.row !== row || scales.col !== col)
      throw fault(kernel, `the scales of ${codes.name} begin elsewhere than it`);
  }
}

/** A scale is for a block, for a row, or for all of a matrix. */
function checkBlock(
  kernel: KernelTensor,
  shape: readonly number[],
  { blockRows, blockCols }: { blockRows: number; blockCols: number },
): void {
  const [rows, cols] = shape.slice(-2);
  const isBlock = blockRows === SCALE_BLOCK && blockCols === SCALE_BLOCK;
  if (!isBlock && !(blockCols === cols && (blockRows === 1 || blockRows === rows)))
    throw fault(kernel, `one scale is for ${blockRows} × ${blockCols} codes`);
}

/** Codes and scales on disk are one beside the other by name; where in the matrix of codes the part begins, and in which one. */
function locate({ layout }: Plan, kernel: KernelTensor, part: Part, scaleTensors: readonly number[], matrix: number) {
  const codes = layout.checkpointTensors[part.tensors[matrix] ?? -1];
  const scale = layout.checkpointTensors[scaleTensors[matrix] ?? -1];
  const window = codes === undefined ? null : windowOf(part, matrix, codes.shape);
  if (codes === undefined || scale === undefined || window === null) throw fault(kernel, "its scales are not there");
  if (!scale.name.startsWith(`${codes.name}_scale`)) throw fault(kernel, `${codes.name} is scaled by ${scale.name}`);
  const matrixRows = codes.shape.at(-2) ?? 1;
  return { codes, scale, row: window.row % matrixRows, col: window.col, index: Math.floor(window.row / matrixRows) };
}

/** The tensor of scales is one grid a matrix of codes, or one number for all, and `first` is that of this matrix. */
function checkGrid(
  kernel: KernelTensor,
  grid: Grid,
  scale: { name: string; shape: readonly number[] },
  first: number | undefined,
  index: number,
): void {
  const each = grid.rows * grid.cols;
  const all = scale.shape.reduce((product, size) => product * size, 1);
  const isShared = all === 1 && each === 1 && first === 0;
  if (!isShared && (first !== index * each || first + each > all))
    throw fault(
      kernel,
      `${scale.name} of shape [${scale.shape}] has no ${grid.rows} × ${grid.cols} scales at ${first}`,
    );
}

/** The scales of codes that are kept: one for all, one a row, or one a block, and cut with them on every rank. */
function checkKeptCodes(plan: Plan, codes: KernelTensor, layer: PlanLayer): void {
  const names = [`${codes.name}_scale_inv`, `${codes.name}_scale`];
  const scales = layer.kernelTensors.find(({ name }) => names.includes(name));
  if (scales === undefined || scales.dtype !== "F32" || scales.experts?.count !== codes.experts?.count)
    throw fault(codes, "its codes have no scales");
  if (scales.mustAgree) checkOneScale(plan, codes, scales);
  else checkManyScales(plan, codes, scales);
}

function checkManyScales(plan: Plan, codes: KernelTensor, scales: KernelTensor): void {
  const isOfRows = scales.cols === 1 && scales.rows === codes.rows;
  codes.parts.forEach((part, index) => {
    const ofPart = scales.parts[index];
    if (ofPart === undefined || scales.parts.length !== codes.parts.length)
      throw fault(scales, "it has other parts than its codes");
    checkSameCuts(plan, scales, part, ofPart, isOfRows);
    for (let matrix = 0; matrix < part.tensors.length; matrix++) {
      const { codes: onDisk, scale, row, col, index } = locate(plan, codes, part, ofPart.tensors, matrix);
      const [blockRows, blockCols] = isOfRows ? [1, onDisk.shape.at(-1) ?? 1] : [SCALE_BLOCK, SCALE_BLOCK];
      const grid = gridOf(onDisk.shape, blockRows, blockCols);
      const within = (row / blockRows) * grid.cols + col / blockCols;
      checkGrid(scales, grid, scale, (ofPart.firsts[matrix] ?? -1) - within, index);
      if (ofPart.rowStride !== grid.cols) throw fault(scales, `its rows are not those of ${scale.name}`);
    }
  });
}

/** Each tensor of codes has its scale among those that must agree. */
function checkOneScale({ layout }: Plan, codes: KernelTensor, scales: KernelTensor): void {
  const nameOf = ({ tensors }: Part, matrix: number) => layout.checkpointTensors[tensors[matrix] ?? -1]?.name ?? "";
  for (const part of codes.parts) {
    for (let matrix = 0; matrix < part.tensors.length; matrix++) {
      const name = nameOf(part, matrix);
      if (!scales.parts.some((one) => nameOf(one, matrix).startsWith(`${name}_scale`)))
        throw fault(scales, `it does not have the scale of ${name}`);
    }
  }
}

/** Every rank's cut of the scales is that of its codes, in blocks; both are then stacked in the same order. */
function checkSameCuts({ layout }: Plan, scales: KernelTensor, codes: Part, ofCodes: Part, isOfRows: boolean): void {
  const ranks = layout.tensorParallelSize;
  for (let rank = 0; rank < ranks; rank++) {
    const cut = cutPart(codes, rank, ranks);
    const found = cutPart(ofCodes, rank, ranks);
    const blockRows = isOfRows ? 1 : SCALE_BLOCK;
    if (cut.rows === 0 && found.rows === 0) continue; // only padding of a vocabulary
    const isSame =
      found.row * blockRows === cut.row &&
      found.rows === Math.ceil(cut.rows / blockRows) &&
      (isOfRows || (found.col * SCALE_BLOCK === cut.col && found.cols === Math.ceil(cut.cols / SCALE_BLOCK)));
    if (!isSame) throw fault(scales, `rank ${rank} takes row ${found.row} of it with row ${cut.row} of its codes`);
  }
}

function fault({ name }: KernelTensor, what: string) {
  return planFault(`${name}: ${what}`, { kernel_tensor: name });
}
