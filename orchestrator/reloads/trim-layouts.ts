// Layouts are shared from step to step, so they go with the last reload that names them. One that none names is given an hour: a
// reload that is being planned may name it again, and then takes the hour back (plan-store.ts).

import type { Redis } from "ioredis";
import { KEYS } from "../contract/jobs.js";
import type { FleetStore } from "../fleet/fleet-store.js";
import type { StoredPlan } from "../fleet/plan-store.js";
import { fieldOfEveryReload } from "../fleet/record-store.js";
import type { FleetState } from "../fleet/state.js";

const LAST_HOUR_S = 3_600;
const KEYS_PER_SCAN = 500;

export async function trimLayouts(redis: Redis, store: FleetStore): Promise<void> {
  const named = await namedDigests(redis, store);
  for (const pattern of KEYS.layouts) {
    let cursor = "0";
    do {
      const [next, keys] = await redis.scan(cursor, "MATCH", pattern, "COUNT", KEYS_PER_SCAN);
      cursor = next;
      const unnamed = keys.filter((key) => !named.has(key.slice(key.lastIndexOf(":") + 1)));
      await Promise.all(unnamed.map((key) => startLastHour(redis, key)));
    } while (cursor !== "0");
  }
}

async function startLastHour(redis: Redis, key: string): Promise<void> {
  if ((await redis.ttl(key)) === FOREVER) await redis.expire(key, LAST_HOUR_S);
}

/** What Redis answers of a key without an end. */
const FOREVER = -1;

/** Layout and mapping digests of every plan that is kept, and of what the fleets hold. */
async function namedDigests(redis: Redis, store: FleetStore): Promise<Set<string>> {
  const named = new Set<string>();
  for (const fleet of await store.fleets()) {
    const known = await store.readOutline(fleet);
    for (const digest of known === null ? [] : digestsHeld(known.state)) named.add(digest);
  }
  for await (const stored of fieldOfEveryReload(redis, "plan")) {
    const { layoutDigest, mappingDigest } = JSON.parse(stored) as StoredPlan;
    named.add(layoutDigest).add(mappingDigest);
  }
  return named;
}

function digestsHeld({ committed, previous, ranks }: FleetState): string[] {
  const held = [committed, previous, ...Object.values(ranks).flatMap(({ live, undo }) => [live.held, undo])];
  return held.flatMap((one) => one?.layoutDigest ?? []);
}
