// From an admitted record to jobs in the ranks' queues. Any orchestrator may take this on, any number of times: each step
// does nothing that a second doing would spoil.

import { readCheckpointTable } from "../checkpoint/checkpoint-table.js";
import { LayercastError } from "../contract/errors.js";
import type { Plan } from "../contract/plan.js";
import { faultPoint } from "../fault-point.js";
import { checkPlan } from "../planner/check-plan.js";
import { groupLayers } from "../planner/group-layers.js";
import { planReload } from "../planner/plan-reload.js";
import type { ReloadDeps } from "./deps.js";
import { enqueueRanks } from "./enqueue-reload.js";
import { type LoadedPlan, loadPlan, savePlan } from "./plan-store.js";
import { beginLoading } from "./protocol/reload-transitions.js";
import type { FleetState } from "./protocol/state.js";
import { readReload, type StoredRequest } from "./record-store.js";

/** planning -> loading. Throws what makes the reload impossible. */
export async function startReload(deps: ReloadDeps, fleet: string, reload: string, epoch: number): Promise<void> {
  const [{ record, request }, known] = await Promise.all([readReload(deps.redis, reload), deps.store.read(fleet)]);
  if (known === null || record.state !== "planning" || record.epoch !== epoch) return;
  await faultPoint("orchestrator.start");
  const plan =
    record.kind === "rollback"
      ? await loadPlan(deps.redis, record.content)
      : await makePlan(deps, request, known.state);
  if (record.kind === "reload") requireLayout(known.state, plan, request);
  await savePlan(deps.redis, reload, plan);
  await faultPoint("orchestrator.planned");
  const { state } = await deps.store.transact(fleet, (draft, { now }) =>
    beginLoading(draft, reload, epoch, plan.layoutDigest, now),
  );
  await enqueueRanks(deps, state, reload);
}

async function makePlan(deps: ReloadDeps, request: StoredRequest, state: FleetState): Promise<LoadedPlan> {
  const { table, config } = await readCheckpointTable(request.source?.uri ?? "", { allowedRoots: deps.sourceRoots });
  const plan = planReload({
    table,
    config,
    tensorParallelSize: state.topology?.tensorParallelSize ?? 1,
    scheme: request.recipe.scheme,
    ignore: request.recipe.ignore,
    dtype: request.dtype,
  });
  checkPlan(plan, table);
  const layerJobs = groupLayers(plan, request.policy.layers_per_job);
  const { install, policy } = request;
  const retry = { attempts: policy.attempts, backoffMs: policy.backoff_ms };
  return { ...plan, layerJobs, allowNonFinite: install.allow_non_finite, retry };
}

/** Another layout moves the kernel tensors' addresses, so it must be asked for. */
function requireLayout(state: FleetState, plan: Plan, { install }: StoredRequest): void {
  if (install.allow_new_layout) return;
  for (const rank of Object.values(state.ranks)) {
    const standing = rank.live.held?.layoutDigest;
    if (standing === undefined || standing === plan.layoutDigest) continue;
    throw new LayercastError(
      "layout_changed",
      `rank ${rank.key} holds an arena of layout ${standing.slice(0, 12)}, this reload needs ${plan.layoutDigest.slice(0, 12)}: ` +
        "another model, recipe or dtype. Submit with install.allow_new_layout; consumers must then attach again",
      { rank: rank.key, standing, needed: plan.layoutDigest },
    );
  }
}
