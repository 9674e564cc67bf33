// What a reload of some modules changes parts of must be live on the rank, in the layout that it was planned on.

import type { ControlPage } from "../native/native.js";
import { LayercastError } from "../orchestrator/contract/errors.js";
import { type Held, isLive } from "../orchestrator/fleet/state.js";
import type { Owner } from "./ledger.js";
import type { Loading } from "./loading.js";

/** Throws `not_prepared`. A reload of all modules has no base. */
export function requireBase({ plan, pushes, owner }: Loading): void {
  const { base } = plan;
  if (base === null) return;
  const { arena } = pushes;
  const isThere = isLive({ live: arena.liveState() }, base) || isTornBy(owner, base, arena.page());
  if (isThere && arena.standing()?.layoutDigest === plan.layoutDigest) return;
  const { held, state } = arena.liveState();
  throw new LayercastError(
    "not_prepared",
    `this rank holds ${held === null ? `no weights (its arena is ${state})` : `weight version ${held.weightVersion}`}, and a ` +
      `partial push changes parts of weight version ${base.weightVersion} in its layout; push all modules`,
    { needed: base.weightVersion, held: held?.weightVersion ?? null },
  );
}

/** A swap of this very push was cut off: nothing but what it writes again has changed. */
function isTornBy({ reload, epoch }: Owner, base: Held, page: ControlPage): boolean {
  return page.state === "torn" && page.reload === reload && page.epoch === epoch && page.content === base.content;
}
