// From a submission to the plan of its reload, and the jobs that its layers are grouped into.

import type { Checkpoint } from "../checkpoint/checkpoint-table.js";
import { LayercastError } from "../contract/errors.js";
import type { Held } from "../contract/jobs.js";
import type { Plan } from "../contract/plan.js";
import type { PushSettings } from "../contract/push.js";
import type { PlanRequest } from "../contract/reload.js";
import type { Delivery, ReloadPlan } from "../fleet/plan-store.js";
import type { StoredRequest } from "../fleet/record-store.js";
import { type FleetState, isExpertParallel } from "../fleet/state.js";
import { checkPlan } from "../planner/check/check-plan.js";
import { AUTO_JOB_BYTES, groupLayers } from "../planner/group-layers.js";
import { planReload } from "../planner/plan-reload.js";

/** Plans, and checks the plan. Throws what makes the reload impossible. */
export function makePlan(
  request: StoredRequest,
  state: Pick<FleetState, "topology" | "ranks" | "committed">,
  { table, config }: Checkpoint,
): ReloadPlan {
  const plan = planReload({
    table,
    config,
    tensorParallelSize: state.topology?.tensorParallelSize ?? 1,
    expertParallel: isExpertParallel(state),
    scheme: request.recipe.scheme,
    ignore: request.recipe.ignore,
    dtype: request.dtype,
  });
  checkPlan(plan, table);
  const { install, policy, source } = request;
  return {
    layout: plan.layout,
    layoutDigest: plan.layoutDigest,
    mappingDigest: plan.mappingDigest,
    source: plan.source,
    sourceDigest: plan.sourceDigest,
    warnings: plan.warnings,
    allowNonFinite: install.allow_non_finite,
    stagingPlace: install.staging,
    retry: { attempts: policy.attempts, backoffMs: policy.backoff_ms },
    ...(source?.kind === "push" ? inBuckets(source, state.committed) : inLayers(plan, request, state)),
  };
}

type Delivered = Delivery & Pick<ReloadPlan, "layerJobs">;

/** Whole files wait in no buffers, and stay. */
function inLayers(plan: Plan, { policy }: StoredRequest, state: Pick<FleetState, "ranks">): Delivered {
  const layerJobs = groupLayers(plan, policy.layers_per_job, autoJobBytes(state));
  const limits = { maxBufferBytes: null, warnBufferBytes: 0 };
  return { kind: "safetensors", layerJobs, base: null, limits, retainExport: false };
}

/** A bucket's job is sent when it is accepted. */
function inBuckets(source: PushSettings, committed: Held | null): Delivered {
  const { partial, retainExport, maxBufferBytes, warnBufferBytes } = source;
  if (partial && committed === null)
    throw new LayercastError(
      "invalid_request",
      "the fleet holds no weights yet, and a partial push changes parts of some; push all modules first",
    );
  const limits = { maxBufferBytes, warnBufferBytes };
  return { kind: "push", layerJobs: [], base: partial ? committed : null, limits, retainExport };
}

/** For how many ranks, and how experts go by them: as the request says, else as the fleet is. */
export function plannedRanks(
  request: Pick<PlanRequest, "tensor_parallel_size" | "expert_parallel">,
  fleet: Pick<FleetState, "topology"> | null,
): { tensorParallelSize: number; expertParallel: boolean } {
  const tensorParallelSize = request.tensor_parallel_size ?? fleet?.topology?.tensorParallelSize;
  if (tensorParallelSize === undefined)
    throw new LayercastError("invalid_request", "give tensor_parallel_size, or a fleet whose ranks have registered");
  return {
    tensorParallelSize,
    expertParallel: request.expert_parallel ?? (fleet !== null && isExpertParallel(fleet)),
  };
}

/** Threads of a rank's core where no rank of the fleet has said. */
const ASSUMED_THREADS = 16;

/** The most that a rank of the fleet has registered with. */
export function coreThreads({ ranks }: Pick<FleetState, "ranks">): number {
  return Object.values(ranks).reduce((most, { threads }) => Math.max(most, threads ?? 0), 0) || ASSUMED_THREADS;
}

export function autoJobBytes({ ranks }: Pick<FleetState, "ranks">): number {
  const isOnGpus = Object.values(ranks).some(({ device }) => device.startsWith("cuda"));
  return AUTO_JOB_BYTES[isOnGpus ? "cuda" : "cpu"];
}
