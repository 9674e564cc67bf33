// The rank barrier has fallen, and everything that the source brings is here: what waited for finalize is written, and staging is
// closed over what was written.

import type { Span } from "../../native/native.js";
import { LayercastError } from "../../orchestrator/contract/errors.js";
import { joinNames } from "../../orchestrator/contract/join-names.js";
import type { KernelTensor } from "../../orchestrator/contract/plan.js";
import { type ProgramSource, rowsOfWrite } from "../../orchestrator/program/make-program.js";
import { tensorOf } from "../../orchestrator/program/rank-geometry.js";
import { rowCount } from "../../orchestrator/program/row-ranges.js";
import type { RankStaging } from "../staging.js";
import { type CellWrite, cellWrite, isTouched, matrixAt, unwrittenRows } from "./cells.js";
import { type Intake, type IntakeDeps, writeRows } from "./intake.js";

/**
 * open -> prepared. `source`: where the rows are that are not written yet. Throws `tensor_missing` when they are not there: of a
 * push, the orchestrator has let none pass.
 */
export async function closeIntake(
  intake: Intake,
  source: ProgramSource<CellWrite>,
  deps: IntakeDeps,
  staging: Pick<RankStaging, "close">,
): Promise<void> {
  // Once, also for two that close at the same time: a second time would count its digest twice.
  intake.rest ??= writeRest(intake, source, deps).catch((error: unknown) => {
    intake.rest = null;
    throw error;
  });
  const spans = await intake.rest;
  await staging.close(intake.owner, intake.digest, spans);
}

/** All that is not written: attention, what nothing of the checkpoint fills, what is derived. Of a reload of some modules, theirs. */
async function writeRest(intake: Intake, source: ProgramSource<CellWrite>, deps: IntakeDeps): Promise<Span[] | null> {
  const { cells, plan } = intake;
  const isPartial = plan.base !== null;
  const finished = new Set<KernelTensor>();
  for (const index of cells.done.keys())
    if (!isPartial || isTouched(cells, index)) finished.add(matrixAt(cells, index).geometry.kernel);
  const writes: CellWrite[] = [];
  for (const index of cells.done.keys()) {
    if (!finished.has(matrixAt(cells, index).geometry.kernel)) continue;
    for (const range of unwrittenRows(cells, index)) writes.push(cellWrite(cells, index, range));
  }
  for (const write of writes) requireFound(intake, write, source);
  const names = new Set([...finished].map(({ name }) => name));
  const derived = cells.matrices.derived.filter(({ kernel }) => names.has(kernel.derived?.from ?? ""));
  await writeRows(intake, { writes, derived, source }, { name: "finalize", phase: "finalize" }, deps);
  for (const layer of plan.layout.layers.keys()) deps.report.layerComplete(layer);
  if (!isPartial) return null;
  const written = cells.matrices.kernels.filter(({ kernel }) => finished.has(kernel));
  return [...written, ...derived].flatMap(({ spans }) => spans);
}

/** Each row that is not written must be where the source finds it. */
function requireFound({ plan }: Intake, write: CellWrite, source: ProgramSource<CellWrite>): void {
  const { geometry, matrix } = write;
  const missing = geometry.windows.filter((window, at) => {
    const { from, to } = rowsOfWrite(window, write);
    return from < to && rowCount(source.find(write, at, from, to)) < to - from;
  });
  if (missing.length === 0) return;
  const tensors = missing.map((window) => plan.layout.checkpointTensors[tensorOf(window, matrix)]?.name ?? "");
  const names = [...new Set(tensors)];
  throw new LayercastError(
    "tensor_missing",
    `${geometry.kernel.name} lacks rows of ${joinNames(names)}; send them before finishing`,
    {
      tensors: names.slice(0, 100),
    },
  );
}
