// The reload that a command means when no id is given: the one at work, else the newest.

import { countOf } from "../contract/count-of.js";
import { LayercastError } from "../contract/errors.js";
import { type ReloadView, TERMINAL_STATES } from "../contract/reload.js";
import type { Client } from "./http-client.js";

/** Of one fleet, or of all (null). */
export async function activeOrNewest(client: Client, fleet: string | null): Promise<ReloadView> {
  const active = await activeOf(client, fleet);
  if (active !== null) return active;
  const [newest] = await client.reloads({ fleet, state: null, limit: 1 });
  if (newest !== undefined) return newest;
  throw new LayercastError("not_found", `There is no reload yet${ofFleet(fleet)}: submit one first.`, { fleet });
}

/** The one at work, else the newest that waits. */
export async function activeOrQueued(client: Client, fleet: string | null): Promise<ReloadView> {
  const active = await activeOf(client, fleet);
  if (active !== null) return active;
  const [queued] = await client.reloads({ fleet, state: "queued", limit: 1 });
  if (queued !== undefined) return queued;
  throw new LayercastError(
    "not_found",
    `No reload${ofFleet(fleet)} is going on or waiting, so there is none to cancel.`,
    {
      fleet,
    },
  );
}

async function activeOf(client: Client, fleet: string | null): Promise<ReloadView | null> {
  const fleets = fleet === null ? await client.fleets() : [await client.fleet(fleet)];
  const active = fleets.flatMap(({ active_reload_id: id }) => (id === null ? [] : [id]));
  if (active.length > 1) {
    throw new LayercastError(
      "invalid_request",
      `Reloads ${active.join(", ")} are going on in ${countOf(active.length, "fleet")}: give the id of one, or --fleet.`,
      { reloads: active },
    );
  }
  const [id] = active;
  const reload = id === undefined ? null : await client.reload(id);
  return reload === null || TERMINAL_STATES.includes(reload.state) ? null : reload;
}

const ofFleet = (fleet: string | null) => (fleet === null ? "" : ` of fleet ${fleet}`);
