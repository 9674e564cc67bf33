// A fleet whose ranks may hold different weights (P10), and the two ways out of it: the next commit, or ranks that all turn out to
// hold what was decided.

import type { ErrorReport } from "../contract/errors.js";
import {
  type Context,
  expectedRanks,
  type FleetState,
  type Held,
  isLive,
  missingRanks,
  type ReloadRecord,
} from "./state.js";

/** The one kind of failure that may have changed live bytes: said aloud. */
export function tear(state: FleetState, record: ReloadRecord, cause: ErrorReport): void {
  state.torn = true;
  state.tornEpoch = record.epoch;
  record.error = {
    code: "fleet_torn",
    message: `ranks of fleet ${state.fleet} may hold different weights: ${cause.message}. Submit a good checkpoint: its commit heals the fleet`,
    retryable: false,
    details: { cause },
  };
}

/**
 * The ranks that were late have swapped after all: every one shows the weights that were decided, so these are what the fleet
 * holds. Only those: a rank that shows older ones may still be about to swap.
 */
export function mendTorn(state: FleetState, context: Context): void {
  if (!state.torn || state.active !== null || missingRanks(state, context).length > 0) return;
  const held = heldByAll(state);
  if (held === null || held.epoch !== state.tornEpoch) return;
  state.previous = state.committed;
  state.committed = held;
  state.torn = false;
  if (state.engineStop !== null) state.engineStop.phase = "resuming";
}

export function whyTorn(state: FleetState): string {
  const held = heldByAll(state);
  if (held === null) return "fleet_torn: ranks may hold different weights; the next commit heals it";
  return (
    `fleet_torn: every rank shows weight version ${held.weightVersion}, from before the reload that failed, and may still ` +
    "swap to others; the next commit heals it"
  );
}

/** The weights that every rank shows; null when they differ, or one shows none. */
function heldByAll(state: FleetState): Held | null {
  const ranks = expectedRanks(state).map((key) => state.ranks[key]);
  const held = ranks[0]?.live.held ?? null;
  if (held === null) return null;
  return ranks.every((rank) => rank !== undefined && isLive(rank, held)) ? held : null;
}
