// From a submission to the plan of its reload, and the jobs that its layers are grouped into.

import { readCheckpointTable } from "../checkpoint/checkpoint-table.js";
import { checkPlan } from "../planner/check-plan.js";
import { AUTO_JOB_BYTES, groupLayers } from "../planner/group-layers.js";
import { planReload } from "../planner/plan-reload.js";
import type { LoadedPlan } from "./plan-store.js";
import type { FleetState } from "./protocol/state.js";
import type { StoredRequest } from "./record-store.js";

/** Reads the checkpoint's headers, plans, and checks the plan. Throws what makes the reload impossible. */
export async function makePlan(request: StoredRequest, state: FleetState, sourceRoots: string[]): Promise<LoadedPlan> {
  const { table, config } = await readCheckpointTable(request.source?.uri ?? "", { allowedRoots: sourceRoots });
  const plan = planReload({
    table,
    config,
    tensorParallelSize: state.topology?.tensorParallelSize ?? 1,
    scheme: request.recipe.scheme,
    ignore: request.recipe.ignore,
    dtype: request.dtype,
  });
  checkPlan(plan, table);
  const layerJobs = groupLayers(plan, request.policy.layers_per_job, autoJobBytes(state));
  const { install, policy } = request;
  const retry = { attempts: policy.attempts, backoffMs: policy.backoff_ms };
  return { ...plan, layerJobs, allowNonFinite: install.allow_non_finite, stagingPlace: install.staging, retry };
}

export function autoJobBytes({ ranks }: Pick<FleetState, "ranks">): number {
  const isOnGpus = Object.values(ranks).some(({ device }) => device.startsWith("cuda"));
  return AUTO_JOB_BYTES[isOnGpus ? "cuda" : "cpu"];
}
