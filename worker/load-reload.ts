// A reload's bytes into staging: what a layer job, a finalize job and a catching-up rank share.

import { verifyFiles } from "../orchestrator/checkpoint/checkpoint-file.js";
import { LayercastError } from "../orchestrator/contract/errors.js";
import { faultPoint } from "../orchestrator/fault-point.js";
import type { LoadedPlan } from "../orchestrator/reloads/plan-store.js";
import type { Owner } from "./ledger.js";
import type { ProgressReport } from "./report.js";
import type { RankStaging } from "./staging.js";

export interface Loading {
  owner: Owner;
  plan: LoadedPlan;
  mode: "staged" | "in_place";
  staging: RankStaging;
  report: ProgressReport;
  /** "0/1", for the fault points. */
  scope: string;
}

/** So many layers of a job are with the core at once, so that it does not idle between them. */
const LAYERS_AT_ONCE = 2;

/** Stages those of the layers that are not there yet. Settles when no work for any of them is in flight. */
export async function loadLayers(loading: Loading, layers: number[]): Promise<void> {
  const queue = layers.values();
  let failed = false;
  const loadSome = async () => {
    for (const layer of queue) {
      if (failed) return;
      await loadLayer(loading, layer).catch((error: unknown) => {
        failed = true;
        throw error;
      });
    }
  };
  const runs = await Promise.allSettled(Array.from({ length: LAYERS_AT_ONCE }, loadSome));
  for (const run of runs) if (run.status === "rejected") throw run.reason;
}

async function loadLayer({ owner, plan, staging, report, scope }: Loading, layer: number): Promise<void> {
  try {
    await faultPoint("worker.layer", scope);
    const done = await staging.loadLayer(owner, plan, layer);
    if (done !== null) report.layerDone(layer, done);
  } catch (error) {
    throw namingLayer(error, plan, layer, scope.replace("-", "/"));
  }
  await faultPoint("worker.layer_done", scope);
}

/** Everything that is missing, then what waits for the rank barrier. Returns the token's facts. */
export async function prepareReload(
  loading: Loading,
): Promise<{ digest: string; generation: number; finalizeMs: number }> {
  const { owner, plan, staging, report, scope } = loading;
  const ready = staging.prepared(owner);
  if (ready !== null) return { ...ready, finalizeMs: report.progress.finalize_ms };
  await openFor(loading);
  await loadLayers(loading, staging.missing(owner, plan));
  report.phase("finalizing");
  await faultPoint("worker.finalize", scope);
  const startedAt = performance.now();
  await staging.finalize(owner, plan);
  const finalizeMs = performance.now() - startedAt;
  const prepared = staging.prepared(owner);
  if (prepared === null)
    throw new LayercastError("not_prepared", `reload ${owner.reload} lost its staging while finalizing`);
  report.phase("prepared", { finalize_ms: finalizeMs });
  return { ...prepared, finalizeMs };
}

/** Opens staging; the first time, after a look at the source files as they are now on this host. */
export async function openFor({ owner, plan, mode, staging, report }: Loading): Promise<void> {
  const { staging: before } = staging.ledger();
  const opened = before.kind === "open" && before.owner.reload === owner.reload && before.owner.epoch === owner.epoch;
  if (opened) return;
  await verifyFiles(plan.source.files);
  await staging.open(owner, plan, mode);
  report.phase("loading");
}

function namingLayer(error: unknown, plan: LoadedPlan, layer: number, rank: string): unknown {
  if (!(error instanceof LayercastError)) return error;
  const name = plan.layout.layers[layer]?.name ?? String(layer);
  return new LayercastError(
    error.code,
    `rank ${rank}, ${name}: ${error.message}`,
    { layer: name, ...error.details },
    error,
  );
}
