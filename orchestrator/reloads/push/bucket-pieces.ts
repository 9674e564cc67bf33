// A bucket's header against the plan of its push: which rows of which checkpoint tensors it brings. What does not belong is refused
// by name, before a byte of it is used. Pure.

import { createHash } from "node:crypto";
import type { HeaderTensor, SafetensorsHeader } from "../../checkpoint/safetensors-header.js";
import { parseStrictJson, quoted, type StrictJson, StrictJsonError } from "../../checkpoint/strict-json.js";
import { prefixBeforeKnown, unwrapNames } from "../../checkpoint/tensor-names.js";
import { isSourceDType, type SourceDType } from "../../contract/dtype.js";
import { LayercastError } from "../../contract/errors.js";
import type { Layout, Source, SourceWarning } from "../../contract/plan.js";
import { type BucketPiece, ROW_RANGES_KEY } from "../../contract/push.js";

/** What a session expects. */
export interface Expected {
  layout: Layout;
  dtypes: Source["dtype"];
  /** Whether a tensor may come in any float dtype, as it is rounded to that of the request, or goes to F32. */
  mayDiffer: (tensor: number) => boolean;
  /** Index into Layout.checkpointTensors. */
  byName: ReadonlyMap<string, number>;
  /** Why a tensor that no kernel tensor needs is let through; null: it is not. */
  skipped: (name: string) => string | null;
}

export interface HeldPieces {
  /** Sorted by tensor and row. */
  pieces: BucketPiece[];
  /** Of all tensors. */
  bytes: number;
  tensors: number;
  /** The same for every bucket that holds the same rows of the same tensors. */
  contentKey: string;
  /** Where names are those of a wrapped model. */
  warning: SourceWarning | null;
}

/** `file` is what sentences call the bucket. */
export function piecesOf({ tensors, metadata }: SafetensorsHeader, expected: Expected, file: string): HeldPieces {
  if (tensors.length === 0)
    throw new LayercastError("checkpoint_invalid", `${file} holds no tensors; a bucket has at least one`, { file });
  const ranges = readRowRanges(metadata.get(ROW_RANGES_KEY), tensors, file);
  const pieces: BucketPiece[] = [];
  const described: unknown[] = [];
  const { plainOf, warning } = unwrapNames(
    tensors.map(({ name }) => name),
    file,
  );
  for (const sent of tensors) {
    const tensor = { ...sent, name: plainOf(sent.name) };
    const range = ranges.get(sent.name) ?? null;
    const piece = pieceOf(tensor, range, expected);
    if (piece !== null) pieces.push(piece);
    described.push([tensor.name, tensor.dtype, tensor.shape, range?.firstRow ?? 0]);
  }
  pieces.sort((a, b) => a.tensor - b.tensor || a.firstRow - b.firstRow);
  const content = JSON.stringify(described.map((one) => JSON.stringify(one)).sort());
  return {
    pieces,
    bytes: tensors.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
    tensors: tensors.length,
    contentKey: createHash("sha256").update(content).digest("hex"),
    warning,
  };
}

interface DeclaredRange {
  firstRow: number;
  globalShape: number[];
}

/** null: nothing needs it. */
function pieceOf(tensor: HeaderTensor, range: DeclaredRange | null, expected: Expected): BucketPiece | null {
  const index = expected.byName.get(tensor.name);
  if (index === undefined) {
    if (expected.skipped(tensor.name) !== null) return null;
    throw unexpected(tensor.name, expected);
  }
  const { shape = [] } = expected.layout.checkpointTensors[index] ?? {};
  const dtype = dtypeOf(tensor, expected, index);
  const found = range?.globalShape ?? tensor.shape;
  if (!isSame(found, shape)) throw wrongShape(tensor.name, shape, found);
  const rows = tensor.shape[0] ?? 1;
  if (rows === 0) return null;
  return { tensor: index, firstRow: range?.firstRow ?? 0, rows, offset: tensor.offset, ...(dtype && { dtype }) };
}

/** That of the bucket, where it is another than the plan's and may be. */
function dtypeOf({ name, dtype: found }: HeaderTensor, expected: Expected, index: number): SourceDType | null {
  const planned = expected.dtypes[index];
  if (found === planned) return null;
  if (isSourceDType(found) && expected.mayDiffer(index)) return found;
  throw new LayercastError(
    "dtype_mismatch",
    `${name} is ${found}; the push was planned with ${planned}. Send it as that, open the push with its dtype in source.tensors, ` +
      "or without source.tensors and with dtype: bfloat16 to have every float dtype rounded to it",
    { tensor: name, expected: planned, found },
  );
}

/** The metadata's row ranges by tensor. */
function readRowRanges(text: string | undefined, tensors: readonly HeaderTensor[], file: string) {
  const ranges = new Map<string, DeclaredRange>();
  if (text === undefined) return ranges;
  const shapes = new Map(tensors.map(({ name, shape }) => [name, shape]));
  for (const [name, entry] of parseRanges(text, file)) {
    const shape = shapes.get(name);
    if (shape === undefined) throw wrongRange(file, name, "is not a tensor of it");
    if (!(entry instanceof Map)) throw wrongRange(file, name, "is not an object");
    const [offset, globalShape] = [entry.get("offset"), entry.get("global_shape")];
    if (
      !isSizes(offset) ||
      !isSizes(globalShape) ||
      offset.length !== shape.length ||
      globalShape.length !== shape.length
    )
      throw wrongRange(file, name, `must give offset and global_shape, each of ${shape.length} whole numbers`);
    const [firstRow = 0, ...others] = offset;
    const isRows = others.every((at) => at === 0) && globalShape.slice(1).every((size, at) => size === shape[at + 1]);
    if (!isRows) throw wrongRange(file, name, "may be a part of the first dimension alone: offset is 0 in all others");
    if (firstRow + (shape[0] ?? 1) > (globalShape[0] ?? 1))
      throw wrongRange(file, name, `ends at row ${firstRow + (shape[0] ?? 1)} of ${globalShape[0]}`);
    ranges.set(name, { firstRow, globalShape });
  }
  return ranges;
}

function parseRanges(text: string, file: string): Map<string, StrictJson> {
  try {
    const parsed = parseStrictJson(text);
    if (parsed instanceof Map) return parsed;
  } catch (error) {
    if (!(error instanceof StrictJsonError)) throw error;
  }
  throw new LayercastError(
    "checkpoint_invalid",
    `${file} has a ${ROW_RANGES_KEY} in its __metadata__ that is not a JSON object. Write it as {"name": {"offset": [...], "global_shape": [...]}}`,
    { file },
  );
}

function isSizes(value: StrictJson | undefined): value is number[] {
  return Array.isArray(value) && value.every((item) => typeof item === "number" && Number.isInteger(item) && item >= 0);
}

function isSame(one: readonly number[], other: readonly number[]): boolean {
  return one.length === other.length && one.every((size, axis) => size === other[axis]);
}

function unexpected(name: string, { byName }: Expected): LayercastError {
  const prefix = prefixBeforeKnown(name, (known) => byName.has(known));
  return new LayercastError(
    "tensor_unexpected",
    `${quoted(name)} is not one of the tensors that this push was planned with. ` +
      (prefix === null
        ? "Leave it out, or open the push with it in source.tensors."
        : `It is one under the prefix ${quoted(prefix)}: send it as ${quoted(name.slice(prefix.length))}.`),
    { tensors: [name], ...(prefix !== null && { prefix }) },
  );
}

function wrongShape(tensor: string, expected: readonly number[], found: readonly number[]): LayercastError {
  return new LayercastError(
    "shape_mismatch",
    `${tensor} has shape [${found.slice(0, 8).join(", ")}]; the push was planned with [${expected.join(", ")}]. For rows of ` +
      `it give offset and global_shape in ${ROW_RANGES_KEY}`,
    { tensor, expected, found: found.slice(0, 8) },
  );
}

function wrongRange(file: string, name: string, what: string): LayercastError {
  return new LayercastError("checkpoint_invalid", `${file}: ${quoted(name)} in ${ROW_RANGES_KEY} ${what}`, {
    file,
    tensor: name,
  });
}
