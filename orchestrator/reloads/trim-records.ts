// Nothing is kept for ever. Past the newest so many reloads, those that have ended and that no fleet holds or can go back to are
// removed with their events, source and submission; then layouts that no reload names, and fleets that nothing is left of.

import type { Redis } from "ioredis";
import { KEYS } from "../contract/jobs.js";
import type { FleetSnapshot, FleetStore } from "../fleet/fleet-store.js";
import { fieldOfEveryReload } from "../fleet/record-store.js";
import { isTerminal, type ReloadRecord } from "../fleet/state.js";

const KEPT = 1_000;
/** At a time, so that no sweep is long. */
const REMOVED_AT_ONCE = 50;
const LOOKED_AT_ONCE = 200;

/** Walks past records that must stay, however many they are: behind them lie some that need not. */
export async function trimRecords(redis: Redis, store: FleetStore): Promise<void> {
  const surplus = (await redis.zcard(KEYS.reloads)) - KEPT;
  if (surplus <= 0) return;
  const needed = await neededReloads(store);
  let removed = 0;
  for (let from = 0; from < surplus && removed < REMOVED_AT_ONCE; from += LOOKED_AT_ONCE) {
    const ids = await pageOfReloads(redis, from, Math.min(surplus, from + LOOKED_AT_ONCE));
    const ended = await endedAmong(
      redis,
      ids.filter((id) => !needed.has(id)),
    );
    for (const { id, record } of ended.slice(0, REMOVED_AT_ONCE - removed)) {
      await remove(redis, id, record);
      removed += 1;
    }
  }
}

/** Ids, the oldest first. */
function pageOfReloads(redis: Redis, from: number, to: number): Promise<string[]> {
  return redis.zrange(KEYS.reloads, String(from), String(to - 1));
}

/** What the fleets hold or would go back to, and what has not ended. */
async function neededReloads(store: FleetStore): Promise<Set<string>> {
  const fleets = await Promise.all((await store.fleets()).map((fleet) => store.read(fleet)));
  return new Set(
    fleets.flatMap((known) => {
      if (known === null) return [];
      const { committed, previous, reloads } = known.state;
      return [...[committed, previous].flatMap((held) => held?.content ?? []), ...Object.keys(reloads)];
    }),
  );
}

/** Those that have ended, or of which no record is left. */
async function endedAmong(redis: Redis, ids: string[]): Promise<{ id: string; record: ReloadRecord | null }[]> {
  const records = await Promise.all(ids.map((id) => redis.hget(KEYS.reload(id), "record")));
  return ids.flatMap((id, index) => {
    const stored = records[index] ?? null;
    const record = stored === null ? null : (JSON.parse(stored) as ReloadRecord);
    return record === null || isTerminal(record) ? [{ id, record }] : [];
  });
}

/** Of a reload, by its id: its record, and all that belongs to it. */
const RELOAD_KEYS = [
  ...[KEYS.reload, KEYS.events, KEYS.ticks, KEYS.source, KEYS.pushModel],
  ...[KEYS.session, KEYS.sessionRows, KEYS.sessionTaken],
];

async function remove(redis: Redis, id: string, record: ReloadRecord | null): Promise<void> {
  const keys = RELOAD_KEYS.map((key) => key(id));
  if (record !== null) keys.push(KEYS.submission(record.fleet, record.submissionId));
  // From the index last: what an error leaves behind is found again.
  await redis.del(keys);
  await redis.zrem(KEYS.reloads, id);
}

/** Removes fleets that nobody is in and nothing is kept of: a mistyped name in a submit makes one. */
export async function trimFleets(redis: Redis, store: FleetStore): Promise<void> {
  const names = await store.fleets();
  const known = await Promise.all(names.map(async (name) => ({ name, snapshot: await store.read(name) })));
  const empty = known.filter(({ snapshot }) => snapshot === null || isEmpty(snapshot));
  if (empty.length === 0) return;
  const named = await fleetsOfRecords(redis);
  for (const { name, snapshot } of empty) {
    if (!named.has(name)) await store.remove(name, snapshot?.state.version ?? 0);
  }
}

/** No rank lives, nothing is held, queued or set. */
function isEmpty({ state, context }: FleetSnapshot): boolean {
  const { ranks, committed, previous, reloads, hooks, engineStop, retiredQueues } = state;
  const lives = Object.values(ranks).some(({ key, incarnation }) => context.leaseValid(key, incarnation));
  const holds = committed !== null || previous !== null || Object.keys(reloads).length > 0;
  return !lives && !holds && hooks === null && engineStop === null && retiredQueues.length === 0;
}

async function fleetsOfRecords(redis: Redis): Promise<Set<string>> {
  const fleets = new Set<string>();
  for await (const record of fieldOfEveryReload(redis, "record")) {
    fleets.add((JSON.parse(record) as ReloadRecord).fleet);
  }
  return fleets;
}
