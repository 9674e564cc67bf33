// Proves a plan right before anything is read, on the very numbers that the ranks will be given: every row of every kernel
// tensor is written exactly once (check-programs.ts), every checkpoint tensor is used whole and without overlap or skipped
// (check-windows.ts), every code keeps its scale (check-scales.ts), and nothing in an arena overlaps. Intervals, never counts.
// What it finds is our own mistake: `internal`, with the values.

import { countOf } from "../../contract/count-of.js";
import { byteCount } from "../../contract/dtype.js";
import type { LayercastError } from "../../contract/errors.js";
import type { ArenaLayout, CheckpointTable, KernelTensor, Layout, Plan, PlanLayer } from "../../contract/plan.js";
import { expertsPadTo, SCHEMES } from "../../contract/recipe.js";
import { layoutArenas } from "../../program/arena-layout.js";
import { checkPrograms } from "./check-programs.js";
import { checkScales } from "./check-scales.js";
import { checkWindows } from "./check-windows.js";
import { planFault } from "./plan-fault.js";

export function checkPlan(plan: Plan, table: CheckpointTable): void {
  checkSource(plan, table);
  checkWindows(plan, table);
  for (const layer of plan.layout.layers) {
    for (const kernel of layer.kernelTensors) checkKernel(plan, kernel);
    checkHeads(layer);
    checkScales(plan, layer);
  }
  const arenas = layoutArenas(plan.layout);
  for (const arena of new Set(arenas)) checkArena(arena);
  checkPrograms(plan, arenas);
}

/** The plan's idea of each checkpoint tensor is the table's. */
function checkSource({ layout, source }: Plan, table: CheckpointTable): void {
  layout.checkpointTensors.forEach(({ name, shape }, index) => {
    const tensor = table.tensors.get(name);
    const dtype = source.dtype[index];
    const same =
      tensor !== undefined &&
      dtype !== undefined &&
      tensor.file === source.file[index] &&
      tensor.offset === source.offset[index] &&
      tensor.dtype === dtype &&
      sameShape(tensor.shape, shape);
    if (!same) throw planFault(`${name} is not where the checkpoint has it, or is something else`, { tensor: name });
    const file = source.files[tensor.file];
    const end = tensor.offset + byteCount(dtype, tensor.shape);
    if (file === undefined || end > file.sizeBytes)
      throw planFault(`${name} ends at byte ${end} of a file of ${countOf(file?.sizeBytes ?? 0, "byte")}`, {
        tensor: name,
      });
  });
}

function sameShape(one: readonly number[], other: readonly number[]): boolean {
  return one.length === other.length && one.every((size, axis) => size === other[axis]);
}

/** Shapes are those of its matrix, each part has a tensor a matrix, and codes are what a scheme or the checkpoint makes. */
function checkKernel({ layout, source }: Plan, kernel: KernelTensor): void {
  const { dtype, shape, rows, cols, scheme, scale, parts, derived, experts, constant } = kernel;
  const elements = rows * cols * (derived?.heads ?? 1);
  const isCodes = dtype === "F8_E4M3";
  const mayBeCodes = scheme !== "none" || layout.scheme === "as-stored";
  const isRight = isCodes ? mayBeCodes : scheme === "none";
  const scaleShape = SCHEMES[scheme].scaleShape(rows, cols, experts !== null);
  const isScaled = scale === null ? scheme === "none" : scheme !== "none" && sameShape(scale.shape, scaleShape);
  if (byteCount(dtype, shape) !== byteCount(dtype, [elements]) || !isRight || !isScaled)
    throw fault(
      kernel,
      `of dtype ${dtype} is ${rows} × ${cols} under ${scheme}, but has shape [${shape}] and scales [${scale?.shape}]`,
    );
  if (constant !== null && (constant !== 1 || parts.length > 0)) throw fault(kernel, `is ${constant}`);
  for (const { tensors, firsts, scales, padTo } of parts) {
    if (padTo !== (experts === null ? 1 : expertsPadTo(scheme))) throw fault(kernel, `is made up to ${padTo}`);
    const lists = [tensors, firsts, ...(scales === null ? [] : [scales.tensors, scales.firsts])];
    if (lists.some(({ length }) => length !== (experts?.count ?? 1)))
      throw fault(kernel, `has ${countOf(experts?.count ?? 1, "matrix", "matrices")}, a part of it another number`);
    if (experts !== null) checkExperts(layout, kernel, tensors, firsts);
    const stored = tensors.map((tensor) => source.dtype[tensor]);
    const mayBeExponents = dtype === "F32" && scheme === "none";
    if (!mayBeExponents && stored.includes("F8_E8M0")) throw fault(kernel, "is made of exponents");
    const mustBeCodes = scales !== null || (isCodes && scheme === "none");
    const wrong = stored.findIndex((one) => (one === "F8_E4M3") !== mustBeCodes);
    if (wrong !== -1) throw fault(kernel, `of dtype ${dtype} is made of ${stored[wrong]}`);
  }
}

/** Matrices are those of the experts in order: each further on in one tensor, or of the tensor with its number in the name. */
function checkExperts(layout: Layout, kernel: KernelTensor, tensors: number[], firsts: number[]): void {
  if (kernel.experts?.byRank !== layout.expertParallel)
    throw fault(kernel, "is split in another way than the layout says");
  const isStacked = tensors.every((tensor) => tensor === tensors[0]);
  tensors.forEach((tensor, expert) => {
    const name = layout.checkpointTensors[tensor]?.name ?? "";
    // One number may be the scale of all experts.
    const isFurther = expert === 0 || kernel.mustAgree || (firsts[expert] ?? 0) > (firsts[expert - 1] ?? 0);
    if (isStacked ? !isFurther : !name.includes(`.${expert}.`)) throw fault(kernel, `has ${name} for expert ${expert}`);
  });
}

/** What is derived of a kernel tensor is, together, every row of each of its heads once. */
function checkHeads({ kernelTensors }: PlanLayer): void {
  const ends = new Map<string, { end: number; headRows: number }>();
  const ordered = kernelTensors.toSorted((a, b) => (a.derived?.firstRow ?? 0) - (b.derived?.firstRow ?? 0));
  for (const kernel of ordered) {
    if (kernel.derived === null) continue;
    const { from, firstRow, headRows } = kernel.derived;
    const end = ends.get(from)?.end ?? 0;
    if (firstRow !== end) throw fault(kernel, `has heads from row ${firstRow}, row ${end} is next`);
    ends.set(from, { end: end + kernel.rows, headRows });
  }
  for (const [name, { end, headRows }] of ends)
    if (end !== headRows) throw planFault(`${end} of ${countOf(headRows, "row")} of ${name}'s heads are derived`, {});
}

function checkArena(arena: ArenaLayout): void {
  const names = new Set<string>();
  let end = 0;
  for (const { name, offset, bytes, dtype, shape } of arena.tensors) {
    if (names.has(name)) throw planFault(`${name} is twice in the arena`, { kernel_tensor: name });
    if (offset < end || bytes !== byteCount(dtype, shape))
      throw planFault(`${name} lies at ${offset} with ${countOf(bytes, "byte")}, before the end at ${end}`, {
        kernel_tensor: name,
      });
    names.add(name);
    end = offset + bytes;
  }
  if (end > arena.dataBytes)
    throw planFault(`the arena has ${countOf(arena.dataBytes, "byte")}, its tensors end at ${end}`, {});
}

function fault({ name }: KernelTensor, what: string): LayercastError {
  return planFault(`${name} ${what}`, { kernel_tensor: name });
}
