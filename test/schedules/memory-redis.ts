// Redis as the protocol sees it: the fleet store's scripts, plans, records, and a life that can end, with or without what was
// written last. `commit` says in TypeScript what the store's script says in Lua; a test holds the two against each other.

import { KEYS, type RankKey } from "../../orchestrator/contract/jobs.js";
import type { FleetWrite } from "../../orchestrator/fleet/fleet-write.js";
import type { Context, FleetState, ReloadRecord } from "../../orchestrator/fleet/state.js";

/** All that Redis holds, but for the queues. */
export interface Contents {
  fleets: Map<string, { version: number; state: string; outline: string }>;
  /** By fleet and rank. */
  leases: Map<string, Map<string, { incarnation: string; expires: number }>>;
  values: Map<string, string>;
  /** By key and field. */
  fields: Map<string, Map<string, string>>;
  reloadIndex: Map<string, number>;
  streams: Map<string, { name: string; payload: string }[]>;
}

export function emptyContents(): Contents {
  return {
    fleets: new Map(),
    leases: new Map(),
    values: new Map(),
    fields: new Map(),
    reloadIndex: new Map(),
    streams: new Map(),
  };
}

/** Compare-and-set of a fleet: the mirror of the store's Lua. Returns whether it was written. */
export function commit(contents: Contents, write: FleetWrite, redisRunId: string, now: number): boolean {
  if (redisRunId !== write.redisRunId) return false;
  if ((contents.fleets.get(write.fleet)?.version ?? 0) !== write.version) return false;
  for (const { rank, incarnation } of write.leases) {
    const held = contents.leases.get(write.fleet)?.get(rank);
    if (held?.incarnation !== incarnation || held.expires < now) return false;
  }
  contents.fleets.set(write.fleet, { version: write.version + 1, state: write.state, outline: write.outline });
  for (const { rank, incarnation, ttlMs } of write.grant) {
    inner(contents.leases, write.fleet).set(rank, { incarnation, expires: now + ttlMs });
  }
  for (const { id, at } of write.reloadIndex) contents.reloadIndex.set(id, at);
  for (const { key, value } of write.set) contents.values.set(key, value);
  for (const { key, field, value } of write.fields) inner(contents.fields, key).set(field, value);
  for (const { key, name, payload } of write.events) {
    contents.streams.set(key, [...(contents.streams.get(key) ?? []), { name, payload }]);
  }
  return true;
}

export function renewLease(
  contents: Contents,
  fleet: string,
  rank: RankKey,
  incarnation: string,
  expires: number,
): void {
  if ((contents.leases.get(fleet)?.get(rank)?.incarnation ?? incarnation) !== incarnation) return;
  inner(contents.leases, fleet).set(rank, { incarnation, expires });
}

export function contextOf(contents: Contents, fleet: string, redisRunId: string, now: number): Context {
  const leases = contents.leases.get(fleet);
  return {
    now,
    redisRunId,
    leaseValid(rank, incarnation) {
      const held = leases?.get(rank);
      return held?.incarnation === incarnation && held.expires >= now;
    },
  };
}

export function readFleet(contents: Contents, fleet: string, field: "state" | "outline" = "state"): FleetState | null {
  const stored = contents.fleets.get(fleet);
  return stored === undefined ? null : parse(stored[field]);
}

/** The last one parsed: nobody changes what he reads. */
let parsed = { text: "", state: null as FleetState | null };

function parse(text: string): FleetState | null {
  if (parsed.text !== text) parsed = { text, state: JSON.parse(text) as FleetState };
  return parsed.state;
}

export function removeFleet(contents: Contents, fleet: string, version: number): void {
  if ((contents.fleets.get(fleet)?.version ?? 0) !== version) return;
  contents.fleets.delete(fleet);
  contents.leases.delete(fleet);
}

export function readRecord(contents: Contents, id: string): ReloadRecord | null {
  const record = contents.fields.get(KEYS.reload(id))?.get("record");
  return record === undefined ? null : (JSON.parse(record) as ReloadRecord);
}

/** Deep enough that later writes do not show in it. */
export function copyContents(contents: Contents): Contents {
  const copyInner = <Value>(map: Map<string, Map<string, Value>>) =>
    new Map([...map].map(([key, one]) => [key, new Map(one)]));
  return {
    fleets: new Map(contents.fleets),
    leases: copyInner(contents.leases),
    values: new Map(contents.values),
    fields: copyInner(contents.fields),
    reloadIndex: new Map(contents.reloadIndex),
    streams: new Map(contents.streams),
  };
}

function inner<Value>(map: Map<string, Map<string, Value>>, key: string): Map<string, Value> {
  const found = map.get(key) ?? new Map<string, Value>();
  map.set(key, found);
  return found;
}
