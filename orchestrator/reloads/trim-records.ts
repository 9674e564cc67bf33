// Old records are not kept for ever: past the newest so many, those that have ended and that no fleet can go back to are
// removed with their events, source and submission. Layouts stay: they are few, and shared from step to step.

import type { Redis } from "ioredis";
import { KEYS } from "../contract/jobs.js";
import type { FleetState, ReloadRecord } from "./protocol/state.js";
import { isTerminal } from "./protocol/state.js";

const KEPT = 1_000;
/** At a time, so that no sweep is long. */
const REMOVED_AT_ONCE = 50;

export async function trimRecords(redis: Redis, fleets: FleetState[]): Promise<void> {
  const surplus = (await redis.zcard(KEYS.reloads)) - KEPT;
  if (surplus <= 0) return;
  const needed = new Set(
    fleets.flatMap(({ committed, previous }) => [committed, previous].map((held) => held?.content)),
  );
  const oldest = await redis.zrange(KEYS.reloads, "0", String(Math.min(surplus, REMOVED_AT_ONCE) - 1));
  for (const id of oldest) {
    if (!needed.has(id)) await remove(redis, id);
  }
}

async function remove(redis: Redis, id: string): Promise<void> {
  const stored = await redis.hget(KEYS.reload(id), "record");
  const record = stored === null ? null : (JSON.parse(stored) as ReloadRecord);
  if (record !== null && !isTerminal(record)) return;
  const keys = [KEYS.reload(id), KEYS.events(id), KEYS.source(id)];
  if (record !== null) keys.push(KEYS.submission(record.fleet, record.submissionId));
  await redis.multi().del(keys).zrem(KEYS.reloads, id).exec();
}
