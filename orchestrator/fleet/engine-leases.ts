// Engines that compute with the ranks' arenas (P14). The run lock keeps each of them from ever reading a mix; what is here keeps the
// fleet from deciding what such an engine could not follow: while it starts, or to where its addresses no longer are.

import type { EngineLease, EngineReport } from "../contract/engines.js";
import { LayercastError } from "../contract/errors.js";
import type { RankKey } from "../contract/jobs.js";
import {
  activeReload,
  expectedRanks,
  type FleetState,
  type RankState,
  type ReloadRecord,
  ranksOfReplica,
  shows,
} from "./state.js";

/** A rank's worker says which engines it has. Those that wait are let in, if nothing is in the way; the answer says which are. */
export function reportEngines(
  state: FleetState,
  key: RankKey,
  incarnation: string,
  reports: readonly EngineReport[],
  now: number,
): EngineLease[] {
  const rank = state.ranks[key];
  if (rank?.incarnation !== incarnation)
    throw new LayercastError("stale_job", `rank ${key} is not registered as incarnation ${incarnation}`, { rank: key });
  const before = rank.engines ?? [];
  const isOpen = whyNotAttach(state, rank) === null;
  rank.engines = reports.map((report) => {
    const is = report.state === "waiting" && isOpen ? "starting" : report.state;
    const known = before.find(({ id }) => id === report.id);
    return { ...report, state: is, since: known?.state === is ? known.since : now };
  });
  return rank.engines;
}

/**
 * Why no engine may begin to use this rank's arena now; null: it may. An engine needs all ranks of its replica: if some
 * let it in, it would wait for the others, and a commit that those need would wait for it.
 */
export function whyNotAttach(state: FleetState, rank: RankState): string | null {
  const { committed } = state;
  const active = activeReload(state);
  if (active?.state === "committing") return `reload ${active.id} is committing`;
  if (active?.inPlace && active.state !== "planning") return `reload ${active.id} is writing in place`;
  if (state.torn) return "the fleet's ranks hold different weights until the next commit";
  if (committed === null) return "the fleet holds no weights yet";
  const behind = ranksOfReplica(state, rank.replica).find((key) => !shows(state, key, committed));
  if (behind !== undefined) return `rank ${behind} does not hold weight version ${committed.weightVersion} yet`;
  if (active !== null && (active.layoutDigest ?? committed.layoutDigest) !== committed.layoutDigest)
    return `reload ${active.id} brings another layout`;
  return null;
}

/** Names of the engines that the fleet's reloads concern, in these states. */
function enginesIn(state: FleetState, states: readonly EngineLease["state"][]): string[] {
  const leases = expectedRanks(state).flatMap((key) => state.ranks[key]?.engines ?? []);
  return [...new Set(leases.filter((lease) => states.includes(lease.state)).map(nameOf))].sort();
}

export function nameOf({ id, name, version, host }: Pick<EngineLease, "id" | "name" | "version" | "host">): string {
  return `${name} ${version} ${id} on ${host}`;
}

/** They cannot be stopped yet, so nothing is decided. */
export function startingEngines(state: FleetState): string[] {
  return enginesIn(state, ["starting"]);
}

/** What would move or half write the arena under an engine is refused, before anything has changed. */
export function refuseUnderEngines(
  state: FleetState,
  { inPlace }: Pick<ReloadRecord, "inPlace">,
  layoutDigest: string | null,
): void {
  const engines = enginesIn(state, ["starting", "ready"]);
  if (engines.length === 0) return;
  const standing = expectedRanks(state).map((key) => state.ranks[key]?.live.held?.layoutDigest);
  const isMoved = layoutDigest !== null && standing.some((digest) => digest !== undefined && digest !== layoutDigest);
  if (!inPlace && !isMoved) return;
  const why = inPlace
    ? "an in_place reload writes live weights for as long as it loads"
    : "this reload needs another arena layout, and the engine's addresses and graphs are of the one that stands";
  throw new LayercastError(
    "engine_attached",
    `${engines.length === 1 ? "Engine" : "Engines"} ${engines.join(", ")} ${engines.length === 1 ? "computes" : "compute"} ` +
      `with the fleet's arenas, and ${why}. ${inPlace ? "Submit without install.mode in_place" : "End the engine, reload, start it again"}.`,
    { engines },
  );
}
