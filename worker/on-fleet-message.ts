// What the fleet's messages mean for what a rank has in staging: swap it, or give it up. Messages may be lost or late; jobs
// and heartbeats do the same without them.

import type { FleetMessage } from "../orchestrator/contract/fleet-message.js";
import { activeReload } from "../orchestrator/fleet/state.js";
import type { Owner } from "./ledger.js";
import { loadingOf } from "./loading.js";
import { makeLive } from "./make-live.js";
import { type Rank, tellArena, undoOf } from "./rank.js";

export async function onFleetMessage(rank: Rank, { fleet, active, swapTo }: FleetMessage): Promise<void> {
  const { staging } = rank.staging.ledger();
  if (fleet !== rank.fleet || !("owner" in staging)) return;
  const { owner } = staging;
  if (owner.reload !== active) return releaseIfEnded(rank, owner);
  if (staging.kind !== "prepared" || swapTo?.reload !== owner.reload || swapTo.epoch !== owner.epoch) return;
  // The script that publishes this has written it too, so there is nothing to look up.
  const plan = await rank.plans.load(owner.content);
  await makeLive(rank, loadingOf(rank, { inPlace: false }, owner, plan), swapTo);
}

async function releaseIfEnded(rank: Rank, owner: Owner): Promise<void> {
  const known = await rank.store.read(rank.fleet);
  const active = known === null ? null : activeReload(known.state);
  const committed = known?.state.committed ?? null;
  if (active?.id === owner.reload || committed?.epoch === owner.epoch) return;
  await rank.staging.release(owner);
  if (undoOf(rank) !== null) await tellArena(rank, null);
}
