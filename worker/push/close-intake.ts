// The rank barrier has fallen, and everything a push brings is here: what waited for finalize is written, staging is closed over
// what was written, and the buffers are given back.

import type { Span } from "../../native/native.js";
import { LayercastError } from "../../orchestrator/contract/errors.js";
import { listed } from "../../orchestrator/contract/listed.js";
import type { KernelTensor } from "../../orchestrator/contract/plan.js";
import type { Places } from "../../orchestrator/planner/layer-geometry.js";
import type { RankMatrices } from "../../orchestrator/planner/matrix-needs.js";
import { pushProgram } from "../../orchestrator/planner/push-program.js";
import { NO_ROWS, withoutRows } from "../../orchestrator/planner/row-ranges.js";
import { addDigests, digestFromHex } from "../ledger.js";
import type { RankStaging } from "../staging.js";
import { isDone, isTouched, matrixAt, missingRows, noteWritten, placeRows } from "./cells.js";
import { FILES, type Intake, type IntakeDeps, programFiles } from "./intake.js";

/** open -> prepared. Throws `tensor_missing` when a matrix lacks rows: the orchestrator has let none pass. */
export async function closeIntake(intake: Intake, deps: IntakeDeps, staging: RankStaging): Promise<void> {
  intake.last ??= await writeRest(intake, deps); // once: a second try must not count its digest twice
  await staging.closePushed(intake.owner, intake.digest, intake.last.spans);
}

async function writeRest(intake: Intake, deps: IntakeDeps): Promise<NonNullable<Intake["last"]>> {
  const { cells, plan } = intake;
  const isPartial = plan.push?.base !== null;
  const finished = new Set<KernelTensor>();
  for (const index of cells.states.keys()) {
    if (isPartial && !isTouched(cells, index)) continue;
    requireComplete(intake, index);
    finished.add(matrixAt(cells, index).kernel);
  }
  const names = new Set([...finished].map(({ name }) => name));
  const derived = cells.matrices.derived.filter(({ kernel }) => names.has(kernel.derived?.from ?? ""));
  await writeLast(intake, finished, derived, deps);
  for (const { kernel } of derived) finished.add(kernel);
  return { spans: isPartial ? spansOf(finished, cells.matrices.places) : null };
}

function requireComplete({ cells, plan }: Intake, index: number): void {
  const { kernel, needs } = matrixAt(cells, index);
  const missing = needs.filter((_, need) => missingRows(cells, index, need).length > 0);
  if (missing.length === 0) return;
  const names = [...new Set(missing.map(({ tensor }) => plan.layout.checkpointTensors[tensor]?.name ?? ""))];
  throw new LayercastError(
    "tensor_missing",
    `${kernel.name} lacks rows of ${listed(names)}; send them before finishing`,
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
  const left = [...cells.states.keys()].filter(
    (index) => finished.has(matrixAt(cells, index).kernel) && !isDone(cells, index),
  );
  const works = left.flatMap((index) => {
    const { written } = cells.states[index] ?? { written: NO_ROWS };
    const unwritten = withoutRows([{ from: 0, to: matrixAt(cells, index).rows }], written);
    return unwritten.map((range) => ({ index, rows: placeRows(cells, index, range, [], FILES) }));
  });
  const resolved = pushProgram({
    rows: works.map(({ rows }) => rows),
    files: programFiles(intake, null, deps),
    dtypes: cells.dtypes,
    allowNonFinite: plan.allowNonFinite,
    derived: derived.map(({ row }) => row),
  });
  const report = await deps.run(owner, plan, resolved, "finalize");
  intake.digest = addDigests(intake.digest, digestFromHex(report.digest));
  for (const { index, rows } of works) noteWritten(cells, index, rows);
  deps.report.layerWritten(report);
  for (const layer of plan.layout.layers.keys()) deps.report.layerComplete(layer);
}

/** Their places in the arena, with those of their scales. */
function spansOf(kernels: ReadonlySet<KernelTensor>, places: Places): Span[] {
  return [...kernels].flatMap(({ name, scale }) =>
    (scale === null ? [name] : [name, scale.name]).flatMap((place) => {
      const { offset = 0, bytes = 0 } = places.get(place) ?? {};
      return bytes > 0 ? [{ offset, bytes }] : [];
    }),
  );
}
