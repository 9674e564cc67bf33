// Turns (checkpoint table, model config, tensor-parallel size, recipe) into the plan: every kernel tensor of every layer, with
// the parts that fill it, the rule by which a rank cuts each part, and where the bytes are. Pure. The file to read first.

import { createHash } from "node:crypto";
import type { ModelConfig } from "../checkpoint/model-config.js";
import { REQUEST_DTYPES, type RequestDType, type SourceDType } from "../contract/dtype.js";
import { LayercastError } from "../contract/errors.js";
import type {
  CheckpointFile,
  CheckpointTable,
  CheckpointTensor,
  KernelTensor,
  Layout,
  Part,
  Plan,
  PlanLayer,
  Source,
} from "../contract/plan.js";
import { SCHEMES, type Scheme } from "../contract/recipe.js";
import type { PartSpec } from "./architectures/family.js";
import { familyOf, layersOf, readDimensions } from "./architectures/index.js";
import { cutPart } from "./cut-part.js";
import { matchIgnored } from "./ignore-patterns.js";
import { digestLayout } from "./layout-digest.js";
import { type Match, type MatchedTensor, matchTensors } from "./match-tensors.js";

export interface PlanRequest {
  table: CheckpointTable;
  config: ModelConfig;
  tensorParallelSize: number;
  scheme: Scheme;
  ignore: readonly string[];
  dtype: RequestDType;
}

export function planReload(request: PlanRequest): Plan {
  const { table, config, tensorParallelSize, scheme } = request;
  if (!Number.isSafeInteger(tensorParallelSize) || tensorParallelSize < 1)
    throw new LayercastError(
      "invalid_request",
      `The tensor-parallel size is ${tensorParallelSize}; it must be 1 or more.`,
    );
  const family = familyOf(config);
  const model = readDimensions(config, family);
  const match = matchTensors(layersOf(family, model), model, table);
  const ignored = matchIgnored(request.ignore, [...table.tensors.keys()]);
  const roundTo = REQUEST_DTYPES[request.dtype];
  const checkpointTensors = tensorsUsed(match);
  const indexOf = new Map(checkpointTensors.map(({ name }, index) => [name, index]));
  const layers = match.layers.map(
    ({ name, tensors }): PlanLayer => ({
      name,
      kernelTensors: tensors.map((tensor) =>
        kernelTensor(tensor, { tensorParallelSize, scheme, ignored, roundTo, indexOf }),
      ),
    }),
  );
  const names = checkpointTensors.map(({ name }) => name);
  const layout: Layout = { modelType: model.modelType, tensorParallelSize, scheme, layers, checkpointTensors: names };
  const source = sourceOf(checkpointTensors, table.files);
  return {
    layout,
    layoutDigest: digestLayout(layout),
    source,
    sourceDigest: digestFiles(table.files),
    skipped: match.skipped,
  };
}

interface Settings {
  tensorParallelSize: number;
  scheme: Scheme;
  ignored: ReadonlySet<string>;
  roundTo: SourceDType | null;
  /** Checkpoint tensor name -> index in Layout.checkpointTensors. */
  indexOf: ReadonlyMap<string, number>;
}

function kernelTensor(matched: MatchedTensor, settings: Settings): KernelTensor {
  const { spec, parts: tensors } = matched;
  if (spec.presence === "attention_scale") return attentionScale(matched, settings);
  const ranks = settings.tensorParallelSize;
  const parts = tensors.map((tensor, index): Part => {
    const part = spec.parts[index];
    if (part === undefined) throw new LayercastError("internal", `${spec.name} has no part ${index}.`);
    checkDivides(tensor, part, ranks);
    return partOf(tensor, part, settings);
  });
  const cuts = parts.map((part) => cutPart(part, 0, ranks));
  const rows = cuts.reduce((sum, cut) => sum + cut.rows + cut.zeroRows, 0);
  const cols = cuts[0]?.cols ?? 1;
  const ignored = isIgnored(matched, settings.ignored);
  const scheme = spec.quantized && !ignored ? settings.scheme : "none";
  const { scaleSuffix, scaleShape } = SCHEMES[scheme];
  const dtype = settings.roundTo ?? matched.dtype;
  if (dtype === null) throw new LayercastError("internal", `${spec.name} has no parts and no value.`);
  return {
    name: spec.name,
    dtype: scheme === "none" ? dtype : "F8_E4M3",
    shape: tensors[0]?.shape.length === 1 ? [rows] : [rows, cols],
    rows,
    cols,
    parts,
    scheme,
    scale: scaleSuffix === null ? null : { name: spec.name + scaleSuffix, shape: scaleShape(rows, cols) },
    // Also where the checkpoint has this dtype already: what it is rounded from must not be part of the layout.
    roundTo: dtype,
    constant: null,
    mustBePositive: false,
    phase: "layer",
  };
}

/** A scalar that goes straight to F32, whatever the recipe and the dtype say. */
function attentionScale({ spec, parts: tensors }: MatchedTensor, settings: Settings): KernelTensor {
  return {
    name: spec.name,
    dtype: "F32",
    shape: [],
    rows: 1,
    cols: 1,
    parts: tensors.map((tensor) => ({
      ...partOf(tensor, { rule: { kind: "replicate" } }, settings),
      rows: 1,
      cols: 1,
    })),
    scheme: "none",
    scale: null,
    roundTo: null,
    constant: tensors.length === 0 ? 1 : null,
    mustBePositive: true,
    phase: "finalize",
  };
}

function partOf(tensor: CheckpointTensor, { rule }: Pick<PartSpec, "rule">, settings: Settings): Part {
  const index = settings.indexOf.get(tensor.name);
  if (index === undefined) throw new LayercastError("internal", `${tensor.name} has no index.`);
  const [rows = 1, cols = 1] = tensor.shape;
  return { tensor: index, rows, cols, rule };
}

function checkDivides(tensor: CheckpointTensor, part: PartSpec, ranks: number): void {
  const [rows = 1, cols = 1] = tensor.shape;
  const { rule, units } = part;
  const refuse = (field: string, size: number) => {
    throw new LayercastError(
      "indivisible",
      `${tensor.name} cannot be split over ${ranks} ranks: ${field} is ${size}, which does not divide by ${ranks}` +
        `${rule.kind === "kv_heads" ? `, nor ${ranks} by it` : ""}. Use another tensor-parallel size.`,
      { tensor: tensor.name, field, size, tensor_parallel_size: ranks },
    );
  };
  if (rule.kind === "replicate") return;
  const kvReplicated = rule.kind === "kv_heads" && ranks % rule.heads === 0;
  if (units !== undefined && units.count % ranks !== 0 && !kvReplicated) refuse(units.field, units.count);
  if (rule.kind === "rows" && rows % ranks !== 0) refuse("its number of rows", rows);
  if (rule.kind === "columns" && cols % ranks !== 0) refuse("its number of columns", cols);
}

/** Whether the recipe's ignore patterns name the parts; they must name all of them or none. */
function isIgnored({ spec, parts }: MatchedTensor, ignored: ReadonlySet<string>): boolean {
  const named = parts.filter(({ name }) => ignored.has(name));
  if (named.length > 0 && named.length < parts.length) {
    const others = parts.filter(({ name }) => !ignored.has(name));
    throw new LayercastError(
      "invalid_request",
      `The ignore patterns name ${named.map(({ name }) => name).join(", ")} but not ${others.map(({ name }) => name).join(", ")}, ` +
        `which are parts of the same ${spec.name}. Name all of its parts or none.`,
      { kernel_tensor: spec.name, ignored: named.map(({ name }) => name), not_ignored: others.map(({ name }) => name) },
    );
  }
  return named.length > 0;
}

/** Each once, in the order of first use. */
function tensorsUsed(match: Match): CheckpointTensor[] {
  return [...new Set(match.layers.flatMap(({ tensors }) => tensors.flatMap(({ parts }) => parts)))];
}

function sourceOf(tensors: readonly CheckpointTensor[], files: CheckpointFile[]): Source {
  return {
    files,
    file: tensors.map(({ file }) => file),
    offset: tensors.map(({ offset }) => offset),
    // matchTensors has let only these through.
    dtype: tensors.map(({ dtype }) => dtype as SourceDType),
  };
}

function digestFiles(files: readonly CheckpointFile[]): string {
  const states = files.map(({ path, sizeBytes, mtimeNs, inode, headerDigest }) => [
    path,
    sizeBytes,
    mtimeNs,
    inode,
    headerDigest,
  ]);
  return createHash("sha256").update(JSON.stringify(states)).digest("hex");
}
