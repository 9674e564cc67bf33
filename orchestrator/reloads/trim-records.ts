// Old records are not kept for ever: past the newest so many, those that have ended and that no fleet can go back to are
// removed with their events, source and submission. Layouts stay: they are few, and shared from step to step.

import type { Redis } from "ioredis";
import { KEYS } from "../contract/jobs.js";
import type { FleetStore } from "./fleet-store.js";
import { isTerminal, type ReloadRecord } from "./protocol/state.js";

const KEPT = 1_000;
/** At a time, so that no sweep is long. */
const REMOVED_AT_ONCE = 50;

export async function trimRecords(redis: Redis, store: FleetStore): Promise<void> {
  const surplus = (await redis.zcard(KEYS.reloads)) - KEPT;
  if (surplus <= 0) return;
  const needed = await contentsHeld(store);
  const oldest = await redis.zrange(KEYS.reloads, "0", String(Math.min(surplus, REMOVED_AT_ONCE) - 1));
  for (const id of oldest) {
    if (!needed.has(id)) await remove(redis, id);
  }
}

/** What the fleets hold, or would go back to. */
async function contentsHeld(store: FleetStore): Promise<Set<string>> {
  const fleets = await Promise.all((await store.fleets()).map((fleet) => store.read(fleet)));
  const held = fleets.flatMap((known) => [known?.state.committed, known?.state.previous]);
  return new Set(held.flatMap((one) => one?.content ?? []));
}

/** A push session's. */
const SESSION_KEYS = [KEYS.session, KEYS.sessionRows, KEYS.sessionTaken];

async function remove(redis: Redis, id: string): Promise<void> {
  const stored = await redis.hget(KEYS.reload(id), "record");
  const record = stored === null ? null : (JSON.parse(stored) as ReloadRecord);
  if (record !== null && !isTerminal(record)) return;
  const keys = [KEYS.reload, KEYS.events, KEYS.source, KEYS.pushModel, ...SESSION_KEYS].map((key) => key(id));
  if (record !== null) keys.push(KEYS.submission(record.fleet, record.submissionId));
  await redis.multi().del(keys).zrem(KEYS.reloads, id).exec();
}
