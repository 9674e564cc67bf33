// What is in a rank's staging while it is open for a reload, however its bytes arrive: which rows are written, and the digest of
// them. A source only finds rows; that they are written, counted, and complete at the end is the same for every kind.

import type { Buffers, NativeCore, Span } from "../../native/native.js";
import type { ReloadPlan } from "../../orchestrator/fleet/plan-store.js";
import { makeProgram, type ProgramSource, type ResolvedProgram } from "../../orchestrator/program/make-program.js";
import type { DerivedGeometry } from "../../orchestrator/program/rank-geometry.js";
import type { RankMatrices } from "../../orchestrator/program/rank-matrices.js";
import { addDigests, digestFromHex, type Owner } from "../ledger.js";
import type { WaitingBuckets } from "../push/buffer-room.js";
import type { ProgressReport } from "../report.js";
import { type Cells, type CellWrite, newCells, noteStreamed, noteWritten } from "./cells.js";

export interface Intake {
  readonly owner: Owner;
  readonly plan: ReloadPlan;
  readonly cells: Cells;
  /** Of everything written so far. */
  digest: bigint;
  /** Layers that are on their way from files. */
  readonly loading: Map<number, Promise<void>>;
  /** Sequences of the buckets that this rank has all of. */
  readonly taken: Set<number>;
  /** Of those, which the session knows of. */
  readonly told: Set<number>;
  buffers: Buffers | null;
  /** Measured, the most that they held. */
  peakBytes: number;
  /** The fleet has been told that tensors come out of order. */
  warned: boolean;
  /** Buckets that found no room. */
  readonly waiting: WaitingBuckets;
  /** The bucket that is being taken, if any; never rejects. */
  busy: Promise<void>;
  /** What waited for the rank barrier is being written, or is: what staging then has; null: the whole arena. */
  rest: Promise<Span[] | null> | null;
}

/** What an intake works with. */
export interface IntakeDeps {
  /** Runs a program while staging is open for the owner. */
  run(
    owner: Owner,
    plan: ReloadPlan,
    resolved: ResolvedProgram,
    what: { name: string; phase: "layer" | "finalize" },
  ): ReturnType<NativeCore["runLayer"]>;
  report: Pick<ProgressReport, "layerWritten" | "layerComplete">;
}

export function openIntake(owner: Owner, plan: ReloadPlan, matrices: RankMatrices): Intake {
  const shapes = plan.layout.checkpointTensors.map(({ shape }) => shape);
  return {
    owner,
    plan,
    cells: newCells(matrices, plan.source.dtype, shapes),
    digest: 0n,
    loading: new Map(),
    taken: new Set(),
    told: new Set(),
    buffers: null,
    peakBytes: 0,
    warned: false,
    waiting: new Map(),
    busy: Promise.resolve(),
    rest: null,
  };
}

export interface Rows<W extends CellWrite> {
  writes: readonly W[];
  /** Made after all else. */
  derived?: readonly DerivedGeometry[];
  source: ProgramSource<W>;
}

/** So many layers of a delivery are with the core at once, so that it does not idle between them. */
export const LAYERS_AT_ONCE = 2;

/** Rows of one layer, which no other delivery is writing. */
export async function writeLayerRows<W extends CellWrite>(
  intake: Intake,
  layer: number,
  rows: Rows<W>,
  deps: IntakeDeps,
): Promise<void> {
  const { cells, plan } = intake;
  await writeRows(intake, rows, { name: `layer ${plan.layout.layers[layer]?.name}`, phase: "layer" }, deps);
  if (cells.unwritten[layer] === 0) deps.report.layerComplete(layer);
}

export async function writeRows<W extends CellWrite>(
  intake: Intake,
  { writes, derived = [], source }: Rows<W>,
  what: { name: string; phase: "layer" | "finalize" },
  deps: IntakeDeps,
): Promise<void> {
  const { cells, plan, owner } = intake;
  const report = await deps.run(owner, plan, makeProgram(writes, derived, source), what);
  intake.digest = addDigests(intake.digest, digestFromHex(report.digest));
  const note = what.phase === "layer" ? noteStreamed : noteWritten;
  for (const write of writes) note(cells, write.index, write);
  deps.report.layerWritten(report);
}
