// What is asked about a whole fleet, answered from its state: what it holds, whether to route to it, its hooks and drained
// replicas, a rank's export.

import { randomBytes } from "node:crypto";
import { LayercastError } from "../contract/errors.js";
import { EXPORT_KEPT_MS, exportFile, exportId, rankOfExport } from "../contract/exports.js";
import { rankKey } from "../contract/jobs.js";
import type { FleetView, RollbackSource } from "../contract/reload.js";
import { setHooks } from "../fleet/engine-transitions.js";
import type { FleetSnapshot } from "../fleet/fleet-store.js";
import { drain, undrain } from "../fleet/replica-transitions.js";
import type { FleetState } from "../fleet/state.js";
import { redisNow } from "../host/redis.js";
import type { ReloadDeps } from "./deps.js";
import { requireHookHosts } from "./hook-hosts.js";
import { hooksOf, viewHooks } from "./hooks-of.js";
import type { Reloads } from "./reloads.js";
import { kindOf } from "./source-kinds.js";
import { knownSources } from "./sources/known-sources.js";
import { unknownFleet } from "./submit-reload.js";
import { viewFleet } from "./view.js";

const EXPORT_TIMEOUT_MS = 600_000;

type FleetAnswers = Pick<
  Reloads,
  | "fleets"
  | "fleet"
  | "routable"
  | "setHooks"
  | "hooks"
  | "clearHooks"
  | "drain"
  | "undrain"
  | "exportRank"
  | "exportSize"
  | "readExport"
  | "removeExport"
>;

export function fleetAnswers(deps: ReloadDeps): FleetAnswers {
  const { store } = deps;
  const isUsable = knownSources((content) => isSourceUsable(deps, content));
  const viewKnownFleet = async ({ state, context }: FleetSnapshot): Promise<FleetView> =>
    viewFleet(state, context, await rollbackSource(state, isUsable));
  return {
    async fleets() {
      const names = (await store.fleets()).sort();
      return Promise.all(names.map(async (name) => viewKnownFleet(await requireFleet(deps, name))));
    },
    fleet: async (name) => viewKnownFleet(await requireFleet(deps, name)),
    routable: (name, minWeightVersion) => requireRoutable(deps, name, minWeightVersion),
    async setHooks(fleet, request) {
      const hooks = hooksOf(request);
      requireHookHosts(deps.hookHosts, hooks);
      await store.transact(fleet, (draft) => setHooks(draft, hooks));
      return viewHooks(hooks);
    },
    async hooks(fleet) {
      const { hooks } = (await requireFleet(deps, fleet)).state;
      if (hooks !== null) return viewHooks(hooks);
      throw new LayercastError(
        "not_found",
        `fleet ${fleet} has no hooks; set them with PUT /v1/fleets/${fleet}/hooks`,
        {
          fleet,
        },
      );
    },
    async clearHooks(fleet) {
      await requireFleet(deps, fleet);
      await store.transact(fleet, (draft) => setHooks(draft, null));
    },
    async drain(fleet, replica) {
      await requireFleet(deps, fleet);
      await store.transact(fleet, (draft) => drain(draft, replica));
      return viewKnownFleet(await requireFleet(deps, fleet));
    },
    async undrain(fleet, replica) {
      await requireFleet(deps, fleet);
      await store.transact(fleet, (draft) => undrain(draft, replica));
      return viewKnownFleet(await requireFleet(deps, fleet));
    },
    exportRank: (fleet, replica, rank) => exportRank(deps, fleet, replica, rank),
    async exportSize(fleet, id) {
      await requireRankOf(deps, fleet, id);
      return deps.exports.sizeBytes(fleet, id);
    },
    readExport: (fleet, id, from, to, signal) => deps.exports.read(fleet, id, from, to, signal),
    async removeExport(fleet, id) {
      await requireRankOf(deps, fleet, id);
      await deps.exports.remove(fleet, id);
    },
  };
}

export async function requireFleet(deps: ReloadDeps, name: string): Promise<FleetSnapshot> {
  const known = await deps.store.read(name);
  if (known === null) throw unknownFleet(name);
  return known;
}

/** Undo on every rank, or else the source, as long as it is what it was; null: there is no way back. */
async function rollbackSource(
  { previous, ranks }: FleetState,
  isUsable: (content: string) => Promise<boolean>,
): Promise<RollbackSource | null> {
  if (previous === null) return null;
  if (Object.values(ranks).every((rank) => rank.undo?.content === previous.content)) return "undo";
  return (await isUsable(previous.content)) ? "source" : null;
}

/** What was pushed has no source. */
async function isSourceUsable({ plans, sources, redis }: ReloadDeps, content: string): Promise<boolean> {
  const plan = await plans.load(content).catch((error: unknown) => {
    if (error instanceof LayercastError && error.code === "source_gone") return null;
    throw error;
  });
  if (plan === null || !kindOf(plan).stays) return false;
  const plannedAgoMs = plan.plannedAt === undefined ? null : (await redisNow(redis)) - plan.plannedAt;
  return sources.verifyFiles(plan.source.files, plannedAgoMs).then(
    () => true,
    () => false,
  );
}

async function requireRoutable(deps: ReloadDeps, name: string, minimum: string | null) {
  const known = await deps.store.readOutline(name);
  if (known === null) throw unknownFleet(name);
  const { state, context } = known;
  const view = viewFleet(state, context, null);
  const weightVersion = view.weight_version;
  if (!view.routable) {
    throw new LayercastError("not_routable", `fleet ${name} is not routable: ${view.not_routable_reason}`, {
      reason: view.not_routable_reason,
      weight_version: weightVersion,
    });
  }
  if (minimum !== null && !reaches(weightVersion, minimum)) {
    throw new LayercastError(
      "not_routable",
      `fleet ${name} holds weight version ${weightVersion}, ${minimum} is wanted`,
      {
        weight_version: weightVersion,
        min_weight_version: minimum,
      },
    );
  }
  return { fleet: name, routable: true, weight_version: weightVersion };
}

/** Versions that are whole numbers are compared as such; any other must be the same. */
function reaches(version: string | null, minimum: string): boolean {
  if (version === minimum) return true;
  const wholeNumber = /^\d+$/;
  return (
    version !== null && wholeNumber.test(version) && wholeNumber.test(minimum) && BigInt(version) >= BigInt(minimum)
  );
}

async function exportRank(deps: ReloadDeps, fleet: string, replica: number, rank: number) {
  const { state } = await requireFleet(deps, fleet);
  const key = rankKey(replica, rank);
  const registered = state.ranks[key];
  if (registered === undefined) {
    throw new LayercastError("not_found", `fleet ${fleet} has no rank ${key} (replica/rank)`, { fleet, rank: key });
  }
  const { incarnation } = registered;
  const id = exportId(key, randomBytes(16).toString("hex"));
  const job = {
    kind: "export",
    fleet,
    file: exportFile(id),
    rank: key,
    incarnation,
    retry: { attempts: 1, backoffMs: 0 },
  } as const;
  const { path, bytes, host, weightVersion, arenaGeneration } = await deps.queues.runExport(job, EXPORT_TIMEOUT_MS);
  const made = { export_id: id, host, path, bytes, kept_s: EXPORT_KEPT_MS / 1000 };
  return { ...made, weight_version: weightVersion, arena_generation: arenaGeneration };
}

/** The rank that an export's id names must be one of the fleet's; then only it can tell whether the export is there still. */
async function requireRankOf(deps: ReloadDeps, fleet: string, id: string): Promise<void> {
  const { state } = await requireFleet(deps, fleet);
  const key = rankOfExport(id);
  if (key !== null && state.ranks[key] !== undefined) return;
  throw new LayercastError(
    "not_found",
    `Fleet ${fleet} has no export ${id}: export_id of an export's answer names it.`,
    {
      fleet,
      export_id: id,
    },
  );
}
