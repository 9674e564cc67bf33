// The rank barrier has fallen, and everything a push brings is here: what waited for finalize is written, staging is closed over
// what was written, and the buffers are given back.

import { LayercastError } from "../../orchestrator/contract/errors.js";
import { listed } from "../../orchestrator/contract/listed.js";
import type { KernelTensor } from "../../orchestrator/contract/plan.js";
import { makeProgram } from "../../orchestrator/planner/make-program.js";
import { tensorOf } from "../../orchestrator/planner/rank-geometry.js";
import type { RankMatrices } from "../../orchestrator/planner/rank-matrices.js";
import { addDigests, digestFromHex } from "../ledger.js";
import type { RankStaging } from "../staging.js";
import { bucketWrite } from "./arrivals.js";
import { isTouched, matrixAt, missingRows, noteWritten, unwrittenRows } from "./cells.js";
import { bucketSource, type Intake, type IntakeDeps } from "./intake.js";

/** open -> prepared. Throws `tensor_missing` when a matrix lacks rows: the orchestrator has let none pass. */
export async function closeIntake(intake: Intake, deps: IntakeDeps, staging: RankStaging): Promise<void> {
  intake.last ??= await writeRest(intake, deps); // once: a second try must not count its digest twice
  await staging.closePushed(intake.owner, intake.digest, intake.last.spans);
}

async function writeRest(intake: Intake, deps: IntakeDeps): Promise<NonNullable<Intake["last"]>> {
  const { cells, plan } = intake;
  const isPartial = plan.push?.base !== null;
  const finished = new Set<KernelTensor>();
  for (const index of cells.done.keys()) {
    if (isPartial && !isTouched(cells, index)) continue;
    requireComplete(intake, index);
    finished.add(matrixAt(cells, index).geometry.kernel);
  }
  const names = new Set([...finished].map(({ name }) => name));
  const derived = cells.matrices.derived.filter(({ kernel }) => names.has(kernel.derived?.from ?? ""));
  await writeLast(intake, finished, derived, deps);
  if (!isPartial) return { spans: null };
  const written = cells.matrices.kernels.filter(({ kernel }) => finished.has(kernel));
  return { spans: [...written, ...derived].flatMap(({ spans }) => spans) };
}

function requireComplete({ cells, plan }: Intake, index: number): void {
  const { geometry, matrix } = matrixAt(cells, index);
  const missing = geometry.windows.filter((_, window) => missingRows(cells, index, window).length > 0);
  if (missing.length === 0) return;
  const tensors = missing.map((window) => plan.layout.checkpointTensors[tensorOf(window, matrix)]?.name ?? "");
  const names = [...new Set(tensors)];
  throw new LayercastError(
    "tensor_missing",
    `${geometry.kernel.name} lacks rows of ${listed(names)}; send them before finishing`,
    {
      tensors: names.slice(0, 100),
    },
  );
}

/** All that is complete and not written: attention, what nothing of the checkpoint fills, what is derived. */
async function writeLast(
  intake: Intake,
  finished: ReadonlySet<KernelTensor>,
  derived: RankMatrices["derived"],
  deps: IntakeDeps,
): Promise<void> {
  const { cells, plan, owner } = intake;
  const left = [...cells.done.keys()].filter((index) => finished.has(matrixAt(cells, index).geometry.kernel));
  const writes = left.flatMap((index) =>
    unwrittenRows(cells, index).map((range) => bucketWrite(cells, index, range, [])),
  );
  const resolved = makeProgram(writes, derived, bucketSource(intake, null, deps));
  const report = await deps.run(owner, plan, resolved, "finalize");
  intake.digest = addDigests(intake.digest, digestFromHex(report.digest));
  for (const write of writes) noteWritten(cells, write.index, write);
  deps.report.layerWritten(report);
  for (const layer of plan.layout.layers.keys()) deps.report.layerComplete(layer);
}
