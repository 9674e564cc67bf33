// A replica that the others no longer wait for, and its way back.

import { countOf } from "../contract/count-of.js";
import { LayercastError } from "../contract/errors.js";
import { activeReload, type Context, type FleetState, isThere, ranksOfReplica, replicasOf, shows } from "./state.js";

/** The others go on without it, until it is asked back or a rank of it has started again. */
export function drain(state: FleetState, replica: number): void {
  const replicas = requireReplica(state, replica);
  const others = replicas.filter((other) => other !== replica && state.drained[other] === undefined);
  if (others.length === 0) {
    throw new LayercastError(
      "invalid_request",
      `replica ${replica} is the last of fleet ${state.fleet} that is not drained; nothing would be left to route to`,
      { replica, drained: Object.keys(state.drained).map(Number) },
    );
  }
  state.drained[replica] = "out";
}

/** It is in again once all its ranks hold what is committed, which they keep up with while they are out. */
export function undrain(state: FleetState, replica: number): void {
  requireReplica(state, replica);
  if (state.drained[replica] === "out") state.drained[replica] = "joining";
}

/** All replicas of the fleet. */
function requireReplica(state: FleetState, replica: number): number[] {
  const replicas = replicasOf(state);
  if (replicas.includes(replica)) return replicas;
  throw new LayercastError(
    "not_found",
    `fleet ${state.fleet} has ${countOf(replicas.length, "replica")}, counted from 0, and none is ${replica}`,
    { replica, replicas: replicas.length },
  );
}

/** Back in, and with a reload that is not decided it prepares like any other (P8). */
export function rejoin(state: FleetState, context: Context): void {
  const { committed } = state;
  const active = activeReload(state);
  // Its engine would not stand still for what is decided already, or is written in place.
  if (committed === null || active?.state === "committing" || active?.inPlace) return;
  for (const replica of replicasOf(state)) {
    if (state.drained[replica] !== "joining") continue;
    const keys = ranksOfReplica(state, replica);
    const ready = keys.every((key) => isThere(state, key, context) && shows(state, key, committed));
    if (ready) delete state.drained[replica];
  }
}
