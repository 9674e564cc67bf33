// Proves that every checkpoint tensor is accounted for: skipped, or used, and then whole. Parts of one tensor are windows of
// it: together they are all of it, and no two of them overlap.

import { elementCount } from "../../contract/dtype.js";
import type { CheckpointTable, KernelTensor, Part, Plan } from "../../contract/plan.js";
import { planFault } from "./plan-fault.js";

/** A rectangle of a checkpoint tensor seen as a matrix whose columns are its last dimension. */
export interface Window {
  row: number;
  rows: number;
  col: number;
  cols: number;
}

/** Where one matrix of a part lies in its tensor; null: not as a rectangle, or outside. */
export function windowOf(part: Part, matrix: number, shape: readonly number[]): Window | null {
  const width = widthOf(shape);
  const first = part.firsts[matrix] ?? -1;
  const transposed = isTransposed(part);
  const [along, across] = transposed ? [part.rowStride, part.colStride] : [part.colStride, part.rowStride];
  if (along !== 1 || across !== width || !Number.isInteger(first) || first < 0) return null;
  const row = Math.floor(first / width);
  const col = first - row * width;
  const rows = transposed ? part.cols : part.rows;
  const cols = transposed ? part.rows : part.cols;
  const isInside = rows >= 1 && cols >= 1 && col + cols <= width && (row + rows) * width <= elementCount(shape);
  return isInside ? { row, rows, col, cols } : null;
}

/** Whether columns of the part are rows of its tensor; of a tensor of one column, what does not fit is. */
export function isTransposed({ rowStride, colStride, cols }: Part): boolean {
  return colStride !== 1 || cols > rowStride;
}

/** Columns of a checkpoint tensor as a matrix; a vector has one. */
export function widthOf(shape: readonly number[]): number {
  return shape.length < 2 ? 1 : (shape.at(-1) ?? 1);
}

export function checkWindows(plan: Plan, table: CheckpointTable): void {
  const { checkpointTensors, layers } = plan.layout;
  const uses: Uses = {
    whole: new Uint32Array(checkpointTensors.length),
    windows: new Map(),
    asScales: new Uint8Array(checkpointTensors.length),
    unshared: new Uint8Array(checkpointTensors.length),
  };
  for (const { kernelTensors } of layers)
    for (const kernel of kernelTensors) for (const part of kernel.parts) useTensors(plan, kernel, part, uses);
  checkpointTensors.forEach((tensor, index) => {
    checkUse(tensor, index, uses);
  });
  checkAccounted(plan, table);
}

/** By index in Layout.checkpointTensors. */
interface Uses {
  /** Times that all of it is one part. */
  whole: Uint32Array;
  /** What else of it is used: of most tensors nothing. */
  windows: Map<number, Window[]>;
  /** 1: its values are scales by which codes are made values. */
  asScales: Uint8Array;
  /** 1: a number of it that serves two would be a mistake. */
  unshared: Uint8Array;
}

function useTensors({ layout }: Plan, kernel: KernelTensor, part: Part, uses: Uses): void {
  // A scale of the key/value cache may serve k and v, and a scale of codes all that are fused with them on disk.
  const mayBeShared = kernel.phase === "finalize" || kernel.mustAgree;
  for (let matrix = 0; matrix < part.tensors.length; matrix++) {
    const index = part.tensors[matrix] ?? -1;
    const tensor = layout.checkpointTensors[index];
    const window = tensor === undefined ? null : windowOf(part, matrix, tensor.shape);
    if (tensor === undefined || window === null)
      throw planFault(
        `${tensor?.name} of shape [${tensor?.shape}] is planned as ${part.rows} × ${part.cols} for ${kernel.name}`,
        { tensor: tensor?.name },
      );
    if (window.rows * window.cols === elementCount(tensor.shape)) uses.whole[index] = (uses.whole[index] ?? 0) + 1;
    else addWindow(uses.windows, index, window);
    if (!mayBeShared) uses.unshared[index] = 1;
  }
  for (const index of part.scales?.tensors ?? []) uses.asScales[index] = 1;
}

function addWindow(windows: Uses["windows"], index: number, window: Window): void {
  const known = windows.get(index);
  if (known === undefined) windows.set(index, [window]);
  else known.push(window);
}

function checkUse({ name, shape }: { name: string; shape: number[] }, index: number, uses: Uses): void {
  const whole = uses.whole[index] ?? 0;
  const windows = uses.windows.get(index) ?? null;
  const mayBeShared = uses.unshared[index] === 0;
  if ((uses.asScales[index] === 1) === (whole > 0 || windows !== null))
    throw planFault(`${name} is listed but not used, or both as values and as scales of others`, { tensor: name });
  const isOneNumber = mayBeShared && elementCount(shape) === 1;
  if (whole > 1 ? !isOneNumber : whole === 1 && windows !== null)
    throw planFault(`${name} is used twice`, { tensor: name });
  if (windows !== null) checkWhole(name, shape, windows, mayBeShared);
}

/** Bands of rows, one below the other, each filled by windows side by side. */
function checkWhole(name: string, shape: readonly number[], windows: Window[], mayBeShared: boolean): void {
  const width = widthOf(shape);
  const height = elementCount(shape) / width;
  const ordered = windows.toSorted((a, b) => a.row - b.row || a.col - b.col);
  let band: Window = { row: 0, rows: 0, col: 0, cols: width };
  for (const window of ordered) {
    const end = band.col + band.cols;
    const isNext =
      end === width ? window.row === band.row + band.rows && window.col === 0 : isBeside(window, band, end);
    const isAgain = mayBeShared && isSameNumber(window, band);
    if (!isNext && !isAgain)
      throw planFault(`${name} is used twice, or not all of it, about row ${window.row}, column ${window.col}`, {
        tensor: name,
      });
    band = window;
  }
  if (band.col + band.cols !== width || band.row + band.rows !== height)
    throw planFault(`${name} of ${height} × ${width} is used up to row ${band.row + band.rows}`, { tensor: name });
}

function isBeside(window: Window, band: Window, end: number): boolean {
  return window.row === band.row && window.rows === band.rows && window.col === end;
}

function isSameNumber(one: Window, other: Window): boolean {
  return one.rows * one.cols === 1 && one.row === other.row && one.col === other.col && other.rows * other.cols === 1;
}

/** Used or skipped, one of the two and once, whatever the checkpoint has. */
function checkAccounted({ layout, skipped }: Plan, table: CheckpointTable): void {
  const accounted = new Set<string>();
  for (const { name } of [...skipped, ...layout.checkpointTensors]) {
    if (accounted.has(name)) throw planFault(`${name} is used and skipped, or listed twice`, { tensor: name });
    if (!table.tensors.has(name)) throw planFault(`${name} is not in the checkpoint`, { tensor: name });
    accounted.add(name);
  }
  if (accounted.size === table.tensors.size) return;
  for (const name of table.tensors.keys())
    if (!accounted.has(name)) throw planFault(`${name} is neither used nor skipped`, { tensor: name });
}
