// The one way a fleet's state is read and changed: read it with the leases and Redis's clock, apply a transition of
// protocol/ to a draft, write the draft with its events and changed records in one script if nobody was faster, else again.

import { isDeepStrictEqual } from "node:util";
import type { Redis } from "ioredis";
import { LayercastError } from "../contract/errors.js";
import { CHANNELS, EVENTS_KEPT, type FleetMessage, KEYS, type RankKey } from "../contract/jobs.js";
import { advance, nextStep } from "./protocol/advance.js";
import {
  activeReload,
  type Context,
  type FleetState,
  isTerminal,
  newFleet,
  type ReloadRecord,
} from "./protocol/state.js";

export interface FleetSnapshot {
  state: FleetState;
  context: Context;
}

/** What a transition may read and write beside the fleet's state, in the same compare-and-set. */
export interface Beside {
  /** Values of the keys named to `transact`. */
  readonly stored: readonly (string | null)[];
  set: { key: string; value: string }[];
  reloadIndex: { id: string; at: number }[];
  reloadFields: { id: string; field: string; value: string }[];
}

export type Transition<Result> = (draft: FleetState, context: Context, beside: Beside) => Result;

export interface FleetStore {
  /** Throws what the transition throws; then nothing is written. */
  transact<Result>(
    fleet: string,
    transition: Transition<Result>,
    readKeys?: string[],
  ): Promise<{ result: Result; state: FleetState }>;
  read(fleet: string): Promise<FleetSnapshot | null>;
  fleets(): Promise<string[]>;
  /** Called with every state that this store has written, and the reloads that entered another state with it. */
  onWritten(listener: (state: FleetState, entered: ReloadRecord[]) => void): void;
  /** Says that the incarnation lives, for `ttlMs` from now by Redis's clock. */
  renewLease(fleet: string, rank: RankKey, incarnation: string, ttlMs: number): Promise<void>;
}

const MAX_TRIES = 100;

/**
 * Compare-and-set of a fleet. KEYS[1] fleet, KEYS[2] leases, KEYS[3] set of fleets, KEYS[4] reload index.
 * ARGV[1] what describeWrite says, ARGV[2] the new state. Returns 1, or 0 when the version moved or a lease
 * that the transition relied on has run out.
 */
const COMMIT_SCRIPT = `
local write = cjson.decode(ARGV[1])
local version = redis.call('HGET', KEYS[1], 'version') or '0'
if version ~= tostring(write.version) then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, lease in ipairs(write.leases) do
  local held = redis.call('HGET', KEYS[2], lease.rank)
  local incarnation, expires = string.match(held or '', '^(.-)|(%d+)$')
  if incarnation ~= lease.incarnation or tonumber(expires) < now then return 0 end
end
redis.call('HSET', KEYS[1], 'version', write.version + 1, 'state', ARGV[2])
redis.call('SADD', KEYS[3], write.fleet)
for _, entry in ipairs(write.reloadIndex) do redis.call('ZADD', KEYS[4], entry.at, entry.id) end
for _, entry in ipairs(write.set) do redis.call('SET', entry.key, entry.value) end
for _, field in ipairs(write.fields) do redis.call('HSET', field.key, field.field, field.value) end
for _, event in ipairs(write.events) do
  redis.call('XADD', event.key, 'MAXLEN', '~', write.eventsKept, '*', 'name', event.name, 'payload', event.payload)
end
for _, message in ipairs(write.messages) do redis.call('PUBLISH', message.channel, message.text) end
return 1
`;

/** KEYS[1] fleet, KEYS[2] leases, then keys to get. Returns state, leases as a flat list, seconds, microseconds, values. */
const READ_SCRIPT = `
local time = redis.call('TIME')
local reply = { redis.call('HGET', KEYS[1], 'state'), redis.call('HGETALL', KEYS[2]), time[1], time[2] }
for index = 3, #KEYS do reply[index + 2] = redis.call('GET', KEYS[index]) end
return reply
`;

/** KEYS[1] leases; ARGV rank, incarnation, ttlMs. */
const LEASE_SCRIPT = `
local time = redis.call('TIME')
local expires = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3]
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. '|' .. string.format('%d', expires))
`;

interface Commands extends Redis {
  layercastCommit(
    fleet: string,
    leases: string,
    fleets: string,
    index: string,
    write: string,
    state: string,
  ): Promise<number>;
  layercastRead(
    keyCount: number,
    ...keys: string[]
  ): Promise<[string | null, string[], string, string, ...(string | null)[]]>;
  layercastLease(leases: string, rank: string, incarnation: string, ttlMs: number): Promise<void>;
}

export function openFleetStore(redis: Redis): FleetStore {
  redis.defineCommand("layercastCommit", { numberOfKeys: 4, lua: COMMIT_SCRIPT });
  redis.defineCommand("layercastRead", { lua: READ_SCRIPT });
  redis.defineCommand("layercastLease", { numberOfKeys: 1, lua: LEASE_SCRIPT });
  const commands = redis as Commands;
  const listeners: ((state: FleetState, entered: ReloadRecord[]) => void)[] = [];

  async function readWith(fleet: string, keys: string[]) {
    const [state, leases, seconds, micros, ...stored] = await commands.layercastRead(
      2 + keys.length,
      KEYS.fleet(fleet),
      KEYS.leases(fleet),
      ...keys,
    );
    const now = Number(seconds) * 1000 + Math.floor(Number(micros) / 1000);
    return {
      state: state === null ? null : (JSON.parse(state) as FleetState),
      context: { now, leaseValid: leaseCheck(leases, now) },
      stored,
    };
  }

  async function transact<Result>(fleet: string, transition: Transition<Result>, readKeys: string[] = []) {
    for (let attempt = 0; attempt < MAX_TRIES; attempt++) {
      const { state, context, stored } = await readWith(fleet, readKeys);
      const before = state ?? newFleet(fleet);
      const draft = structuredClone(before);
      const beside: Beside = { stored, set: [], reloadIndex: [], reloadFields: [] };
      const result = transition(draft, context, beside);
      advance(draft, context);
      if (isDeepStrictEqual(before, draft)) return { result, state: draft };
      draft.version += 1;
      const { write, kept, entered } = describeWrite(before, draft, beside);
      const written = await commands.layercastCommit(
        KEYS.fleet(fleet),
        KEYS.leases(fleet),
        KEYS.fleets,
        KEYS.reloads,
        JSON.stringify(write),
        JSON.stringify(kept),
      );
      if (Number(written) === 1) {
        for (const listener of listeners) listener(draft, entered);
        return { result, state: draft };
      }
    }
    throw new LayercastError(
      "redis_unavailable",
      `fleet ${fleet} changed ${MAX_TRIES} times under one write; try again`,
      { fleet },
    );
  }

  return {
    transact,
    async read(fleet) {
      const { state, context } = await readWith(fleet, []);
      return state === null ? null : { state, context };
    },
    onWritten: (listener) => void listeners.push(listener),
    fleets: () => redis.smembers(KEYS.fleets),
    renewLease: (fleet, rank, incarnation, ttlMs) =>
      commands.layercastLease(KEYS.leases(fleet), rank, incarnation, ttlMs),
  };
}

/** `leases`: rank key, "incarnation|expires", rank key, ... */
function leaseCheck(leases: string[], now: number): Context["leaseValid"] {
  return (rank, incarnation) => {
    const at = leases.indexOf(rank);
    const [holder, expires] = (at === -1 ? "|0" : (leases[at + 1] ?? "|0")).split("|");
    return holder === incarnation && Number(expires) >= now;
  };
}

/** What the script writes: the state without ended reloads, every changed record, an event for every state entered. */
function describeWrite(before: FleetState, after: FleetState, beside: Beside) {
  const changed = Object.values(after.reloads).filter(
    (record) => !isDeepStrictEqual(record, before.reloads[record.id]),
  );
  const entered = changed.filter((record) => record.state !== before.reloads[record.id]?.state);
  const fields = changed.map((record) => ({
    key: KEYS.reload(record.id),
    field: "record",
    value: JSON.stringify(record),
  }));
  for (const { id, field, value } of beside.reloadFields) fields.push({ key: KEYS.reload(id), field, value });
  const write = {
    fleet: after.fleet,
    version: before.version,
    leases: reliedOnLeases(after, entered),
    reloadIndex: beside.reloadIndex,
    set: beside.set,
    fields,
    events: entered.map((record) => ({ key: KEYS.events(record.id), name: "state", payload: stateEvent(record) })),
    eventsKept: EVENTS_KEPT,
    messages: describeMessages(after, changed),
  };
  const unfinished = Object.entries(after.reloads).filter(([, record]) => !isTerminal(record));
  return { write, entered, kept: { ...after, reloads: Object.fromEntries(unfinished) } };
}

function describeMessages(after: FleetState, changed: ReloadRecord[]): { channel: string; text: string }[] {
  const { fleet, version, active } = after;
  const decided = activeReload(after)?.state === "committing";
  const message: FleetMessage = { fleet, version, waits: nextStep(after) !== null, active, decided };
  return [
    ...changed.map(({ id }) => ({ channel: CHANNELS.reload, text: id })),
    ...changed.filter(isTerminal).map(({ id }) => ({ channel: CHANNELS.ended, text: id })),
    { channel: CHANNELS.fleet, text: JSON.stringify(message) },
  ];
}

/** The decision and the publishing hold only if every rank's lease is valid in the very step that writes them (P3, P5). */
function reliedOnLeases(after: FleetState, entered: ReloadRecord[]): { rank: string; incarnation: string }[] {
  if (!entered.some((record) => record.state === "committing" || record.state === "committed")) return [];
  return Object.values(after.ranks).map((rank) => ({ rank: rank.key, incarnation: rank.incarnation }));
}

function stateEvent(record: ReloadRecord): string {
  return JSON.stringify({ state: record.state, epoch: record.epoch, error: record.error });
}
