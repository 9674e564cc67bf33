// From an admitted record to jobs in the ranks' queues. Any orchestrator may take this on, any number of times: each step
// does nothing that a second doing would spoil.

import { LayercastError } from "../contract/errors.js";
import { refuseUnderEngines } from "../fleet/engine-leases.js";
import type { ReloadPlan } from "../fleet/plan-store.js";
import type { StoredRequest } from "../fleet/record-store.js";
import { beginLoading, warn } from "../fleet/reload-transitions.js";
import { activeReload, type FleetState } from "../fleet/state.js";
import { faultPoint } from "../host/fault-point.js";
import { layoutDifference } from "../planner/layout-difference.js";
import type { DriveDeps } from "./deps.js";
import { enqueueRanks } from "./enqueue-reload.js";
import { kindOf } from "./source-kinds.js";

/** planning -> loading. Throws what makes the reload impossible. */
export async function startReload(deps: DriveDeps, fleet: string, reload: string, epoch: number): Promise<void> {
  const [{ request }, known] = await Promise.all([deps.records.read(reload), deps.store.read(fleet)]);
  const record = known === null ? null : activeReload(known.state);
  if (known === null || record?.id !== reload || record.epoch !== epoch || record.state !== "planning") return;
  await faultPoint("orchestrator.start");
  const isRollback = record.kind === "rollback";
  const plannedAt = record.times.admitted ?? record.times.created;
  const plan = isRollback
    ? await deps.plans.load(record.content)
    : { ...(await deps.makePlan(request, known.state, reload)), plannedAt };
  if (!isRollback) await requireLayout(deps, known.state, plan, request);
  refuseUnderEngines(known.state, record, plan.layoutDigest);
  await deps.plans.save(reload, plan);
  if (request.source) await kindOf(request.source).start(deps, request.source, reload);
  await faultPoint("orchestrator.planned");
  const { state } = await deps.store.transact(fleet, (draft, { now }) => {
    for (const warning of isRollback ? [] : plan.warnings) warn(draft, reload, epoch, warning);
    beginLoading(draft, reload, epoch, plan.layoutDigest, now);
  });
  await enqueueRanks(deps, state, reload);
}

/** Another layout moves the kernel tensors' addresses, so it must be asked for. */
async function requireLayout(
  { plans }: DriveDeps,
  state: FleetState,
  plan: ReloadPlan,
  { install }: StoredRequest,
): Promise<void> {
  if (install.allow_new_layout) return;
  for (const rank of Object.values(state.ranks)) {
    const standing = rank.live.held?.layoutDigest;
    if (standing === undefined || standing === plan.layoutDigest) continue;
    const layout = await plans.layout(standing);
    const difference = layout === null ? null : layoutDifference(layout, plan.layout);
    throw new LayercastError(
      "layout_changed",
      `Rank ${rank.key} holds an arena of layout ${standing.slice(0, 12)}, this reload needs ${plan.layoutDigest.slice(0, 12)}: ` +
        `${difference ?? "another model, recipe or dtype"}. If that is meant, submit with install.allow_new_layout; consumers ` +
        "must then attach again. If not, correct the checkpoint.",
      { rank: rank.key, standing, needed: plan.layoutDigest },
    );
  }
}
