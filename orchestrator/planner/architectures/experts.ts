// Mixture of experts as tensor specifications: the router, and the routed experts in every form in which checkpoints have
// them: one tensor an expert, or all experts stacked in one, gate and up apart or together, transposed or not.

import { readSize, readSizeOrNull } from "../../checkpoint/model-config.js";
import { LayercastError } from "../../contract/errors.js";
import type { PartRule } from "../../contract/plan.js";
import { REPLICATE } from "./decoder-parts.js";
import type { Dimensions, PartSource, PartSpec, TensorSpec } from "./family.js";

export interface Experts {
  count: number;
  /** Rows of one expert's gate and of its up. */
  size: number;
  /** Where the config has it. */
  field: string;
  /** Of the kernel tensors, such as `model.layers.0.mlp.`. */
  prefix: string;
  /** Prefixes on disk, the usual one first. */
  onDisk: readonly string[];
  /** Of one expert's tensors on disk. */
  names: { gate: string; up: string; down: string };
}

export const PROJECTIONS = { gate: "gate_proj", up: "up_proj", down: "down_proj" };

/** The number of experts, under the name that the config has it under. */
export function expertCount({ config }: Dimensions): number {
  const field = EXPERT_COUNTS.find((name) => readSizeOrNull(config, name) !== null) ?? EXPERT_COUNTS[0];
  const count = readSize(config, field);
  if (count <= MAX_EXPERTS) return count;
  throw new LayercastError(
    "checkpoint_invalid",
    `${config.file} gives ${field} ${count}, more than the ${MAX_EXPERTS} experts that a layer may have. Correct it.`,
    { file: config.file, field },
  );
}

/** The router: one row an expert, whole on every rank and never quantized. */
export function router(model: Dimensions, { prefix, onDisk, count }: Experts): TensorSpec {
  const shapes = [[count, model.hiddenSize]];
  const sources = onDisk.map((disk): PartSource => ({ name: `${disk}gate.weight`, shapes }));
  const part: PartSpec = { sources, rows: count, cols: model.hiddenSize, rule: REPLICATE };
  return { name: `${prefix}gate.weight`, parts: [part], quantized: false, presence: "required" };
}

/** `w13_weight`, each expert's gate over its up, and `w2_weight`, its down. */
export function routedExperts(model: Dimensions, experts: Experts): TensorSpec[] {
  const { prefix, count, size, field } = experts;
  const units = { count: size, field };
  const part = (sources: PartSource[], rows: number, cols: number, rule: PartRule): PartSpec => ({
    sources,
    rows,
    cols,
    rule,
    units,
  });
  const inner = (half: Half) => part(innerSources(model, experts, half), size, model.hiddenSize, { kind: "rows" });
  const down = part(downSources(model, experts), model.hiddenSize, size, { kind: "columns" });
  return [
    {
      name: `${prefix}experts.w13_weight`,
      parts: [inner("gate"), inner("up")],
      quantized: true,
      presence: "required",
      experts: count,
    },
    { name: `${prefix}experts.w2_weight`, parts: [down], quantized: true, presence: "required", experts: count },
  ];
}

type Half = "gate" | "up";

/** Where an expert's gate, or its up, may lie; E experts, I rows, H columns. */
function innerSources({ hiddenSize: cols }: Dimensions, experts: Experts, half: Half): PartSource[] {
  const { onDisk, names, count, size: rows } = experts;
  const both = 2 * rows;
  const before = half === "gate" ? 0 : rows;
  const each = onDisk.map((disk) => ({
    name: `${disk}experts.{expert}.${names[half]}.weight`,
    shapes: [[rows, cols]],
  }));
  const stacked = stacks(onDisk).flatMap(({ disk, suffix }): PartSource[] => {
    const together = `${disk}gate_up_proj${suffix}`;
    const apart = `${disk}${PROJECTIONS[half]}${suffix}`;
    const down = { name: `${disk}down_proj${suffix}`, shape: [count, rows, cols] };
    return [
      {
        // [E, H, 2·I], and what its own shape does not say where H = 2·I, that of down does.
        name: together,
        shapes: [[count, cols, both]],
        view: { first: before, rowStride: 1, colStride: both, expertStride: cols * both },
        ...(cols === both && { where: down }),
      },
      {
        // [E, 2·I, H]
        name: together,
        shapes: [[count, both, cols]],
        view: { first: before * cols, rowStride: cols, colStride: 1, expertStride: both * cols },
      },
      // [E, I, H]
      { name: apart, shapes: [[count, rows, cols]] },
      ...transposed(apart, count, rows, cols),
    ];
  });
  return [...each, ...stacked];
}

/** Where an expert's down may lie; E experts, H rows, I columns. */
function downSources({ hiddenSize: rows }: Dimensions, experts: Experts): PartSource[] {
  const { onDisk, names, count, size: cols } = experts;
  const each = onDisk.map((disk) => ({ name: `${disk}experts.{expert}.${names.down}.weight`, shapes: [[rows, cols]] }));
  const stacked = stacks(onDisk).flatMap(({ disk, suffix }): PartSource[] => {
    const name = `${disk}down_proj${suffix}`;
    const gateUp = { name: `${disk}gate_up_proj${suffix}`, shape: [count, rows, 2 * cols] };
    // [E, I, H], and what its own shape does not say where H = I, that of gate and up together does; then [E, H, I].
    return [...transposed(name, count, rows, cols, gateUp), { name, shapes: [[count, rows, cols]] }];
  });
  return [...each, ...stacked];
}

/** A stack of matrices [rows, cols], each transposed. A square one counts only where another tensor's shape says so. */
function transposed(
  name: string,
  count: number,
  rows: number,
  cols: number,
  where?: PartSource["where"],
): PartSource[] {
  const view = { first: 0, rowStride: 1, colStride: rows, expertStride: rows * cols };
  const source: PartSource = { name, shapes: [[count, cols, rows]], view };
  if (rows !== cols) return [source];
  return where === undefined ? [] : [{ ...source, where }];
}

/** Stacked tensors are modules' parameters in some checkpoints and modules of their own in others. */
function stacks(onDisk: readonly string[]): { disk: string; suffix: string }[] {
  return onDisk.flatMap((disk) => ["", ".weight"].map((suffix) => ({ disk: `${disk}experts.`, suffix })));
}

/** Each expert is some numbers in a plan, and a config is a stranger's. */
const MAX_EXPERTS = 65536;
const EXPERT_COUNTS = ["num_experts", "num_local_experts", "n_routed_experts"] as const;
