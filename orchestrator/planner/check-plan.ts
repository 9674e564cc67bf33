// Proves a plan right before anything is read, on the very numbers that the ranks will be given: every row of every kernel
// tensor is written exactly once, every slice lies inside its checkpoint tensor and file, all ranks' slices together are each
// checkpoint tensor as often as its rule says, nothing in the arena overlaps, and every checkpoint tensor is used or skipped.
// Intervals, never counts. What it finds is our own mistake: `internal`, with the values.

import { type LayerProgram, OP_FIELDS, SLICE_FIELDS } from "../../native/native.js";
import { byteCount, DTYPES } from "../contract/dtype.js";
import { LayercastError } from "../contract/errors.js";
import type { ArenaLayout, CheckpointTable, KernelTensor, Part, Plan } from "../contract/plan.js";
import { layoutArena } from "./arena-layout.js";
import { replicasOf } from "./cut-part.js";
import { type Places, placesOf, type ResolvedProgram, resolveOnce } from "./resolve.js";

export function checkPlan(plan: Plan, table: CheckpointTable): void {
  checkSource(plan, table);
  checkEveryTensorAccounted(plan, table);
  const arena = layoutArena(plan.layout);
  checkArena(plan, arena);
  const places = placesOf(arena);
  for (const layer of plan.layout.layers.keys()) {
    checkLayer(plan, places, layer, "layer");
    checkLayer(plan, places, layer, "finalize");
  }
}

/** The plan's idea of each checkpoint tensor is the table's. */
function checkSource({ layout, source }: Plan, table: CheckpointTable): void {
  layout.checkpointTensors.forEach((name, index) => {
    const tensor = table.tensors.get(name);
    const same =
      tensor !== undefined &&
      tensor.file === source.file[index] &&
      tensor.offset === source.offset[index] &&
      tensor.dtype === source.dtype[index];
    if (!same) throw wrong(`${name} is not where the checkpoint has it`, { tensor: name });
    const file = source.files[tensor.file];
    const end = tensor.offset + byteCount(source.dtype[index] ?? "F32", tensor.shape);
    if (file === undefined || end > file.sizeBytes)
      throw wrong(`${name} ends at byte ${end} of a file of ${file?.sizeBytes} bytes`, { tensor: name });
  });
}

function checkEveryTensorAccounted({ layout, skipped }: Plan, table: CheckpointTable): void {
  const uses = new Map<number, number>();
  for (const { kernelTensors } of layout.layers) {
    for (const { parts, phase } of kernelTensors) {
      for (const { tensor, rows, cols } of parts) {
        const shape = table.tensors.get(layout.checkpointTensors[tensor] ?? "")?.shape;
        if (shape === undefined || rows !== (shape[0] ?? 1) || cols !== (shape[1] ?? 1) || shape.length > 2)
          throw wrong(`${layout.checkpointTensors[tensor]} of shape [${shape}] is planned as ${rows} × ${cols}`, {
            tensor: layout.checkpointTensors[tensor],
          });
        const before = uses.get(tensor) ?? 0;
        // A scale of the key/value cache may serve k and v; nothing else is used twice.
        if (before > 0 && phase !== "finalize")
          throw wrong(`${layout.checkpointTensors[tensor]} is used twice`, {
            tensor: layout.checkpointTensors[tensor],
          });
        uses.set(tensor, before + 1);
      }
    }
  }
  const accounted = new Set(skipped.map(({ name }) => name));
  layout.checkpointTensors.forEach((name, index) => {
    if (!uses.has(index) || accounted.has(name))
      throw wrong(`${name} is listed but not used, or listed twice`, { tensor: name });
    accounted.add(name);
  });
  for (const name of table.tensors.keys()) {
    if (!accounted.delete(name)) throw wrong(`${name} is neither used nor skipped`, { tensor: name });
  }
  for (const name of accounted) throw wrong(`${name} is not in the checkpoint`, { tensor: name });
}

function checkArena({ layout }: Plan, arena: ArenaLayout): void {
  const names = new Set<string>();
  let end = 0;
  for (const { name, offset, bytes, dtype, shape } of arena.tensors) {
    if (names.has(name)) throw wrong(`${name} is twice in the arena`, { kernel_tensor: name });
    if (offset < end || bytes !== byteCount(dtype, shape))
      throw wrong(`${name} lies at ${offset} with ${bytes} bytes, before the end at ${end}`, { kernel_tensor: name });
    names.add(name);
    end = offset + bytes;
  }
  if (end > arena.dataBytes) throw wrong(`the arena has ${arena.dataBytes} bytes, its tensors end at ${end}`, {});
  for (const { name, rows, cols, shape, dtype, scheme } of layout.layers.flatMap(
    ({ kernelTensors }) => kernelTensors,
  )) {
    const bytes = rows * cols * DTYPES[dtype].bytes;
    if (bytes !== byteCount(dtype, shape) || (scheme !== "none") !== (dtype === "F8_E4M3"))
      throw wrong(`${name} of dtype ${dtype} is ${rows} × ${cols}, but has shape [${shape}]`, { kernel_tensor: name });
  }
}

/** A part as one rank takes it: a rectangle of the checkpoint tensor. */
interface Taken {
  row: number;
  rows: number;
  col: number;
  cols: number;
}

function checkLayer(plan: Plan, places: Places, layer: number, phase: KernelTensor["phase"]): void {
  const kernels = plan.layout.layers[layer]?.kernelTensors.filter((kernel) => kernel.phase === phase) ?? [];
  const ranks = plan.layout.tensorParallelSize;
  const taken = new Map<Part, Taken[]>(kernels.flatMap(({ parts }) => parts.map((part) => [part, []])));
  for (let rank = 0; rank < ranks; rank++) {
    const resolved = resolveOnce(plan, places, { layers: [layer], rank, phase, allowNonFinite: false });
    if (resolved.program.ops.length !== kernels.length * OP_FIELDS.length)
      throw wrong(`layer ${layer} has ${kernels.length} kernel tensors, its program another number`, { layer, rank });
    for (const [op, kernel] of kernels.entries()) {
      checkPlace(kernel, op, resolved, places);
      checkOp(plan, kernel, op, resolved, taken);
    }
  }
  for (const kernel of kernels) {
    for (const part of kernel.parts) checkTaken(plan, kernel, part, taken.get(part) ?? []);
  }
}

/** The op writes to its own place in the arena, and its scales to theirs; checkArena has seen that places are apart. */
function checkPlace(kernel: KernelTensor, op: number, { program }: ResolvedProgram, places: Places): void {
  const at = opReader(program, op);
  const scaleOffset = kernel.scale === null ? -1 : places.get(kernel.scale.name)?.offset;
  const right = at("rows") === kernel.rows && at("cols") === kernel.cols && at("scaleOffset") === scaleOffset;
  if (!right || at("outOffset") !== places.get(kernel.name)?.offset)
    throw wrong(`${kernel.name} is written to ${at("outOffset")}, not to its place`, { kernel_tensor: kernel.name });
}

/** The op's slices and zero rows follow each other from row 0 to the last, each as wide as the op, each inside its tensor. */
function checkOp(
  plan: Plan,
  kernel: KernelTensor,
  op: number,
  resolved: ResolvedProgram,
  taken: Map<Part, Taken[]>,
): void {
  const at = opReader(resolved.program, op);
  let nextRow = 0;
  let nextPart = 0;
  for (let slice = at("firstSlice"); slice < at("firstSlice") + at("sliceCount"); slice++) {
    const { rows, cols, toRow } = checkSlice(plan, kernel, slice, resolved);
    if (toRow !== nextRow || cols !== kernel.cols)
      throw wrong(`${kernel.name}: a slice of ${rows} × ${cols} goes to row ${toRow}, row ${nextRow} is next`, {
        kernel_tensor: kernel.name,
      });
    nextRow += rows;
    const origin = resolved.origins[slice];
    while (nextPart < kernel.parts.length && kernel.parts[nextPart]?.tensor !== origin?.tensor) nextPart++;
    const part = kernel.parts[nextPart++];
    if (origin === undefined || part === undefined)
      throw wrong(`${kernel.name}: a slice comes from no part of it`, { kernel_tensor: kernel.name });
    taken.get(part)?.push({ row: origin.row, rows, col: origin.col, cols });
  }
  const constantRows = kernel.constant !== null && kernel.parts.length === 0 ? 1 : 0;
  if (nextRow + at("zeroRows") + constantRows !== kernel.rows || Number.isNaN(at("constant")) !== (constantRows === 0))
    throw wrong(`${kernel.name} has ${kernel.rows} rows, of which ${nextRow + at("zeroRows")} are written`, {
      kernel_tensor: kernel.name,
    });
}

function checkSlice(plan: Plan, kernel: KernelTensor, slice: number, { program, origins }: ResolvedProgram) {
  const at = sliceReader(program, slice);
  const origin = origins[slice];
  const part = kernel.parts.find(({ tensor }) => tensor === origin?.tensor);
  const dtype = plan.source.dtype[origin?.tensor ?? -1];
  const start = plan.source.offset[origin?.tensor ?? -1];
  if (origin === undefined || part === undefined || dtype === undefined || start === undefined)
    throw wrong(`${kernel.name}: slice ${slice} comes from nowhere`, { kernel_tensor: kernel.name });
  const { bytes } = DTYPES[dtype];
  const rows = at("rows");
  const cols = at("cols");
  const inside = rows > 0 && cols > 0 && origin.row + rows <= part.rows && origin.col + cols <= part.cols;
  const offset = start + (origin.row * part.cols + origin.col) * bytes;
  const path = plan.source.files[plan.source.file[origin.tensor] ?? -1]?.path;
  if (
    !inside ||
    at("offset") !== offset ||
    at("rowStride") !== part.cols * bytes ||
    program.files[at("file")]?.path !== path
  )
    throw wrong(`${kernel.name}: slice ${slice} of ${rows} × ${cols} at byte ${at("offset")} is outside its tensor`, {
      kernel_tensor: kernel.name,
    });
  return { rows, cols, toRow: at("toRow") };
}

/** The distinct rectangles of all ranks lie side by side and fill the tensor; each is taken as often as the rule says. */
function checkTaken({ layout }: Plan, kernel: KernelTensor, part: Part, taken: Taken[]): void {
  const name = layout.checkpointTensors[part.tensor];
  const replicas = replicasOf(part, layout.tensorParallelSize);
  const ordered = taken.toSorted((a, b) => a.row - b.row || a.col - b.col);
  const byRows = ordered.every(({ col, cols }) => col === 0 && cols === part.cols);
  const byColumns = ordered.every(({ row, rows }) => row === 0 && rows === part.rows);
  let end = 0;
  ordered.forEach((rectangle, index) => {
    const [start, length] = byRows ? [rectangle.row, rectangle.rows] : [rectangle.col, rectangle.cols];
    const again = index % replicas !== 0;
    if (start !== (again ? end - length : end))
      throw wrong(`${name} for ${kernel.name}: ranks leave out or share what begins at ${end}`, { tensor: name });
    if (!again) end += length;
  });
  const whole = byRows ? part.rows : part.cols;
  if ((!byRows && !byColumns) || end !== whole || ordered.length % replicas !== 0)
    throw wrong(`${name} for ${kernel.name}: all ranks together take ${end} of ${whole}`, { tensor: name });
}

function opReader({ ops }: LayerProgram, op: number): (field: (typeof OP_FIELDS)[number]) => number {
  return (field) => ops[op * OP_FIELDS.length + OP_FIELDS.indexOf(field)] ?? Number.NaN;
}

function sliceReader({ slices }: LayerProgram, slice: number): (field: (typeof SLICE_FIELDS)[number]) => number {
  return (field) => slices[slice * SLICE_FIELDS.length + SLICE_FIELDS.indexOf(field)] ?? Number.NaN;
}

function wrong(what: string, details: Record<string, unknown>): LayercastError {
  return new LayercastError(
    "internal",
    `The plan is wrong: ${what}. Report this with the checkpoint's config.`,
    details,
  );
}
