// A reload's bytes into staging: what a layer job, a finalize job and a catching-up rank share.

import { LayercastError } from "../orchestrator/contract/errors.js";
import { faultPoint } from "../orchestrator/fault-point.js";
import type { LoadedPlan } from "../orchestrator/reloads/plan-store.js";
import { isOwner } from "./ledger.js";
import type { Loading } from "./loading.js";
import { preparePush } from "./push/take-buckets.js";
import { someAtOnce } from "./some-at-once.js";

/** So many layers of a job are with the core at once, so that it does not idle between them. */
const LAYERS_AT_ONCE = 2;

/** The same, with the source files as this host has them. What a push's buckets are is looked at one by one. */
export async function onThisHost(loading: Loading): Promise<Loading> {
  const { sources, owner, plan } = loading;
  return plan.push === null ? { ...loading, plan: await sources.onThisHost(owner, plan) } : loading;
}

/** Stages those of the layers that are not there yet. Settles when no work for any of them is in flight. */
export async function loadLayers(loading: Loading, layers: number[]): Promise<void> {
  await someAtOnce(layers, LAYERS_AT_ONCE, (layer) => loadLayer(loading, layer));
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
  const { owner, plan, staging, report } = loading;
  const ready = staging.prepared(owner);
  if (ready !== null) return { ...ready, finalizeMs: report.progress.finalize_ms };
  const finalizeMs = await (plan.push === null ? loadAndFinalize(await onThisHost(loading)) : preparePush(loading));
  const prepared = staging.prepared(owner);
  if (prepared === null)
    throw new LayercastError("not_prepared", `reload ${owner.reload} lost its staging while finalizing`);
  report.phase("prepared", { finalize_ms: finalizeMs });
  return { ...prepared, finalizeMs };
}

/** Returns how long the part took that begins at the rank barrier. */
async function loadAndFinalize(loading: Loading): Promise<number> {
  const { owner, plan, staging, report, scope } = loading;
  await openAndLoad(loading);
  await loading.sources.requireUntouched(plan.source.files);
  report.phase("finalizing");
  await faultPoint("worker.finalize", scope);
  const startedAt = performance.now();
  await staging.finalize(owner, plan);
  return performance.now() - startedAt;
}

/** Loads while the source files are looked at; bytes of a source that is not the plan's are given up again. */
async function openAndLoad(loading: Loading): Promise<void> {
  const { owner, plan, mode, staging } = loading;
  if (isOpen(loading) || mode === "in_place") {
    await openFor(loading);
    return loadLayers(loading, staging.missing(owner, plan));
  }
  const verified = loading.sources.verify(plan.source.files);
  const loaded = openStaging(loading).then(() => loadLayers(loading, staging.missing(owner, plan)));
  const [source, bytes] = await Promise.allSettled([verified, loaded]);
  if (source.status === "rejected") {
    await staging.release(owner);
    throw source.reason;
  }
  if (bytes.status === "rejected") throw bytes.reason;
}

/** Opens staging; the first time, after a look at the source files as they are now on this host. */
export async function openFor(loading: Loading): Promise<void> {
  if (isOpen(loading)) return;
  await loading.sources.verify(loading.plan.source.files);
  await openStaging(loading);
}

async function openStaging({ owner, plan, mode, staging, report }: Loading): Promise<void> {
  await staging.open(owner, plan, mode);
  report.phase("loading");
}

function isOpen({ staging, owner }: Loading): boolean {
  const current = staging.ledger().staging;
  return current.kind === "open" && isOwner(current, owner);
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
