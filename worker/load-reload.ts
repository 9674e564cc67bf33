// A reload's bytes into staging, whatever kind of source they come from: what a layer job, a bucket's job, a finalize job and a
// catching-up rank share.

import { LayercastError } from "../orchestrator/contract/errors.js";
import type { ReloadPlan } from "../orchestrator/fleet/plan-store.js";
import { faultPoint } from "../orchestrator/host/fault-point.js";
import { checkpointSource, loadLayers } from "./checkpoint-source.js";
import { closeIntake } from "./intake/close-intake.js";
import type { Intake } from "./intake/intake.js";
import { isOwner } from "./ledger.js";
import type { Loading } from "./loading.js";
import { bucketSource, takeOne } from "./push/bucket-source.js";
import { isExportOf, stageExport } from "./push/kept-export.js";
import { requireBase } from "./require-base.js";
import type { SourceKind } from "./source-kind.js";

/** One row a kind: what a new one needs on a rank is its file and a row here. */
const KINDS: Record<ReloadPlan["kind"], SourceKind> = { safetensors: checkpointSource, push: bucketSource };

/** The swap is done. */
export function noteLive(loading: Loading): void {
  KINDS[loading.plan.kind].becameLive(loading);
}

/** A layer job. */
export async function takeLayers(loading: Loading, layers: readonly number[]): Promise<void> {
  const here = await KINDS[loading.plan.kind].onThisHost(loading);
  await loadLayers(here, await openFor(here), layers);
}

/** A bucket's job. */
export async function takeBucket(loading: Loading, sequence: number): Promise<void> {
  await takeOne(loading, await openFor(loading), sequence);
}

/** Everything that is missing, then what waits for the rank barrier. Returns the token's facts. */
export async function prepareReload(
  loading: Loading,
): Promise<{ digest: string; generation: number; finalizeMs: number }> {
  const { owner, staging, report } = loading;
  const ready = staging.prepared(owner);
  if (ready !== null) return { ...ready, finalizeMs: report.progress.finalize_ms };
  const finalizeMs = await ((await isExportOf(loading)) ? timed(() => stageExport(loading)) : takeAndClose(loading));
  const prepared = staging.prepared(owner);
  if (prepared === null)
    throw new LayercastError("not_prepared", `reload ${owner.reload} lost its staging while finalizing`);
  report.phase("prepared", { finalize_ms: finalizeMs });
  return { ...prepared, finalizeMs };
}

/** Returns how long the part took that begins at the rank barrier. */
async function takeAndClose(loading: Loading): Promise<number> {
  const kind = KINDS[loading.plan.kind];
  const here = await kind.onThisHost(loading);
  const { report, scope, staging } = here;
  const intake = await takeAll(kind, here);
  report.phase("finalizing");
  await faultPoint("worker.finalize", scope);
  const deps = { run: staging.run, report };
  const finalizeMs = await timed(() => closeIntake(intake, kind.rest(here, intake), deps, staging));
  kind.closed(here, intake);
  return finalizeMs;
}

/** Loads while the source is looked at; bytes of a source that is not the plan's are given up again. */
async function takeAll(kind: SourceKind, loading: Loading): Promise<Intake> {
  const { owner, mode, staging } = loading;
  if (isOpen(loading) || mode === "in_place") {
    const intake = await openFor(loading);
    await kind.takeAll(loading, intake);
    return intake;
  }
  const verified = kind.verify(loading);
  const opened = openStaging(loading);
  const taken = opened.then((intake) => kind.takeAll(loading, intake));
  const [source, bytes] = await Promise.allSettled([verified, taken]);
  if (source.status === "rejected") {
    await staging.release(owner);
    throw source.reason;
  }
  if (bytes.status === "rejected") throw bytes.reason;
  return opened;
}

/** Opens staging; the first time, after a look at the source as it is now on this host. */
async function openFor(loading: Loading): Promise<Intake> {
  if (!isOpen(loading)) await KINDS[loading.plan.kind].verify(loading);
  return openStaging(loading);
}

async function openStaging(loading: Loading): Promise<Intake> {
  const { owner, plan, mode, staging, report } = loading;
  if (!isOpen(loading)) {
    requireBase(loading);
    await staging.open(owner, plan, mode);
    report.phase("loading");
  }
  return staging.intake(owner);
}

function isOpen({ staging, owner }: Loading): boolean {
  const current = staging.ledger().staging;
  return current.kind === "open" && isOwner(current, owner);
}

async function timed(run: () => Promise<void>): Promise<number> {
  const startedAt = performance.now();
  await run();
  return performance.now() - startedAt;
}
