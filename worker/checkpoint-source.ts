// A checkpoint as a source: all rows are there at once, in files that stay. A layer job is a delivery of its layers' rows.

import { LayercastError } from "../orchestrator/contract/errors.js";
import type { ReloadPlan } from "../orchestrator/fleet/plan-store.js";
import { faultPoint } from "../orchestrator/host/fault-point.js";
import type { ProgramSource } from "../orchestrator/program/make-program.js";
import { matricesOfLayer } from "../orchestrator/program/rank-matrices.js";
import { inCheckpoint } from "../orchestrator/program/resolve.js";
import { type CellWrite, cellWrite, unwrittenRows } from "./intake/cells.js";
import { type Intake, LAYERS_AT_ONCE, writeLayerRows } from "./intake/intake.js";
import type { Loading } from "./loading.js";
import { someAtOnce } from "./some-at-once.js";
import type { SourceKind } from "./source-kind.js";

export const checkpointSource: SourceKind = {
  async onThisHost(loading) {
    const { sources, owner, plan } = loading;
    return { ...loading, plan: await sources.onThisHost(owner, plan) };
  },
  verify: ({ sources, plan }) => sources.verify(plan.source.files),
  async takeAll(loading, intake) {
    const layers = [...loading.plan.layout.layers.keys()].filter((layer) => lacksRows(intake, layer));
    await loadLayers(loading, intake, layers);
    await loading.sources.requireUntouched(loading.plan.source.files);
  },
  rest: ({ plan }) => rowsInFiles(plan),
  becameLive: ({ sources, owner, plan }) => sources.becameLive(owner, plan),
  closed() {},
};

function rowsInFiles({ source, allowNonFinite }: ReloadPlan): ProgramSource<CellWrite> {
  return inCheckpoint(source, allowNonFinite);
}

/** Stages those of the layers that are not there yet. Settles when no work of this call is in flight. */
export async function loadLayers(loading: Loading, intake: Intake, layers: readonly number[]): Promise<void> {
  await someAtOnce(layers, LAYERS_AT_ONCE, (layer) => loadLayer(loading, intake, layer));
}

/** One that is on its way for another job is waited for: nothing is written, or counted, twice. */
function loadLayer(loading: Loading, intake: Intake, layer: number): Promise<void> {
  const known = intake.loading.get(layer);
  if (known !== undefined) return known;
  const onItsWay = writeLayer(loading, intake, layer).finally(() => intake.loading.delete(layer));
  intake.loading.set(layer, onItsWay);
  return onItsWay;
}

function lacksRows({ cells }: Intake, layer: number): boolean {
  return (cells.unwritten[layer] ?? 0) > 0;
}

async function writeLayer(loading: Loading, intake: Intake, layer: number): Promise<void> {
  const { plan, staging, report, scope } = loading;
  try {
    await faultPoint("worker.layer", scope);
    const rows = { writes: rowsOfLayer(intake, layer), source: rowsInFiles(plan) };
    if (rows.writes.length > 0) await writeLayerRows(intake, layer, rows, { run: staging.run, report });
  } catch (error) {
    throw namingLayer(error, plan, layer, scope.replace("-", "/"));
  }
  await faultPoint("worker.layer_done", scope);
}

function rowsOfLayer({ cells }: Intake, layer: number): CellWrite[] {
  return matricesOfLayer(cells.matrices, layer).flatMap((index) =>
    unwrittenRows(cells, index).map((range) => cellWrite(cells, index, range)),
  );
}

function namingLayer(error: unknown, plan: ReloadPlan, layer: number, rank: string): unknown {
  if (!(error instanceof LayercastError)) return error;
  const name = plan.layout.layers[layer]?.name ?? String(layer);
  return new LayercastError(
    error.code,
    `rank ${rank}, ${name}: ${error.message}`,
    { layer: name, ...error.details },
    error,
  );
}
