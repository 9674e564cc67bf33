// The one way a fleet's state is read and changed: read it with the leases and Redis's clock, apply a transition of
// this folder to a draft (fleet-write.ts), write what came of it in one script if nobody was faster, else again.

import type { Redis } from "ioredis";
import { LayercastError } from "../contract/errors.js";
import { KEYS, type RankKey } from "../contract/jobs.js";
import { applyTransition, type FleetWrite, type Transition } from "./fleet-write.js";
import { type Context, type FleetState, newFleet, type ReloadRecord } from "./state.js";

export interface FleetSnapshot {
  state: FleetState;
  context: Context;
}

/** What a log line about a reload that entered another state says beside that state. */
export function enteredFields({ id, epoch, weightVersion, error }: ReloadRecord): Record<string, unknown> {
  return { reload: id, weightVersion, epoch, ...(error === null ? {} : { error }) };
}

export interface FleetStore {
  /** Throws what the transition throws; then nothing is written. */
  transact<Result>(
    fleet: string,
    transition: Transition<Result>,
    readKeys?: string[],
  ): Promise<{ result: Result; state: FleetState }>;
  read(fleet: string): Promise<FleetSnapshot | null>;
  /** The same, with no reload but the active one: small, however long the queue is. */
  readOutline(fleet: string): Promise<FleetSnapshot | null>;
  /** Removes the fleet if its document is still of this version. */
  remove(fleet: string, version: number): Promise<void>;
  fleets(): Promise<string[]>;
  /** Called with every state that this store has written, and the reloads that entered another state with it. */
  onWritten(listener: (state: FleetState, entered: ReloadRecord[]) => void): void;
  /**
   * Says that the incarnation lives, for `ttlMs` from now by Redis's clock. Does nothing where another one has the rank's lease,
   * valid or not: that one has been given it with its registration.
   */
  renewLease(fleet: string, rank: RankKey, incarnation: string, ttlMs: number): Promise<void>;
}

const MAX_TRIES = 100;

/**
 * Compare-and-set of a fleet. KEYS[1] fleet, KEYS[2] leases, KEYS[3] set of fleets, KEYS[4] reload index. ARGV[1] a
 * FleetWrite. Returns 1, or 0 when the version moved, Redis has a new life, or a lease that the transition relied on has run
 * out. test/schedules/memory-redis.ts says the same in TypeScript; test/schedules/mirror.test.ts compares the two.
 */
const COMMIT_SCRIPT = `
local write = cjson.decode(ARGV[1])
if string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') ~= write.redisRunId then return 0 end
local version = redis.call('HGET', KEYS[1], 'version') or '0'
if version ~= tostring(write.version) then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, lease in ipairs(write.leases) do
  local held = redis.call('HGET', KEYS[2], lease.rank)
  local incarnation, expires = string.match(held or '', '^(.-)|(%d+)$')
  if incarnation ~= lease.incarnation or tonumber(expires) < now then return 0 end
end
redis.call('HSET', KEYS[1], 'version', write.version + 1, 'state', write.state, 'outline', write.outline)
redis.call('SADD', KEYS[3], write.fleet)
for _, lease in ipairs(write.grant) do
  redis.call('HSET', KEYS[2], lease.rank, lease.incarnation .. '|' .. string.format('%d', now + lease.ttlMs))
end
for _, entry in ipairs(write.reloadIndex) do redis.call('ZADD', KEYS[4], entry.at, entry.id) end
for _, entry in ipairs(write.set) do redis.call('SET', entry.key, entry.value) end
for _, field in ipairs(write.fields) do redis.call('HSET', field.key, field.field, field.value) end
for _, event in ipairs(write.events) do
  redis.call('XADD', event.key, '*', 'name', event.name, 'payload', event.payload)
end
for _, message in ipairs(write.messages) do redis.call('PUBLISH', message.channel, message.text) end
return 1
`;

/**
 * KEYS[1] fleet, KEYS[2] leases, then keys to get. ARGV[1] state or outline. Returns that, leases as a flat list, seconds, microseconds, the run id
 * of this life of Redis, values.
 */
const READ_SCRIPT = `
local time = redis.call('TIME')
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local state = redis.call('HGET', KEYS[1], ARGV[1]) or redis.call('HGET', KEYS[1], 'state')
local reply = { state, redis.call('HGETALL', KEYS[2]), time[1], time[2], run }
for index = 3, #KEYS do reply[index + 3] = redis.call('GET', KEYS[index]) end
return reply
`;

/** KEYS[1] fleet, KEYS[2] leases, KEYS[3] set of fleets; ARGV fleet, version. */
const REMOVE_SCRIPT = `
if (redis.call('HGET', KEYS[1], 'version') or '0') ~= ARGV[2] then return end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('SREM', KEYS[3], ARGV[1])
`;

/** KEYS[1] leases; ARGV rank, incarnation, ttlMs. */
const LEASE_SCRIPT = `
local time = redis.call('TIME')
local expires = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3]
local incarnation = string.match(redis.call('HGET', KEYS[1], ARGV[1]) or '', '^(.-)|')
if incarnation and incarnation ~= ARGV[2] then return end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. '|' .. string.format('%d', expires))
`;

interface Commands extends Redis {
  layercastCommit(fleet: string, leases: string, fleets: string, index: string, write: string): Promise<number>;
  layercastRead(
    keyCount: number,
    ...keysAndField: string[]
  ): Promise<[string | null, string[], string, string, string, ...(string | null)[]]>;
  layercastRemove(fleet: string, leases: string, fleets: string, name: string, version: string): Promise<null>;
  layercastLease(leases: string, rank: string, incarnation: string, ttlMs: number): Promise<void>;
}

/** What a store needs of a Redis. */
export interface FleetAccess {
  /** Null where there is no such fleet or key; all of it as it was at one moment. */
  read(fleet: string, keys: string[], field?: "state" | "outline"): Promise<FleetReading>;
  /** False when what the write relies on no longer stands; then nothing is written. */
  write(write: FleetWrite): Promise<boolean>;
  fleets(): Promise<string[]>;
  renewLease: FleetStore["renewLease"];
  remove: FleetStore["remove"];
}

export interface FleetReading {
  state: FleetState | null;
  context: Context;
  stored: (string | null)[];
}

export function openFleetStore(redis: Redis): FleetStore {
  return createFleetStore(accessOf(redis));
}

export function createFleetStore(access: FleetAccess): FleetStore {
  const listeners: ((state: FleetState, entered: ReloadRecord[]) => void)[] = [];

  async function transact<Result>(fleet: string, transition: Transition<Result>, readKeys: string[] = []) {
    for (let attempt = 0; attempt < MAX_TRIES; attempt++) {
      const { state, context, stored } = await access.read(fleet, readKeys);
      const { result, after, write, entered } = applyTransition(state ?? newFleet(fleet), context, transition, stored);
      if (write === null) return { result, state: after };
      if (await access.write(write)) {
        for (const listener of listeners) listener(after, entered);
        return { result, state: after };
      }
    }
    throw new LayercastError(
      "redis_unavailable",
      `fleet ${fleet} changed ${MAX_TRIES} times under one write; try again`,
      { fleet },
    );
  }

  async function snapshot(fleet: string, field: "state" | "outline"): Promise<FleetSnapshot | null> {
    const { state, context } = await access.read(fleet, [], field);
    return state === null ? null : { state, context };
  }

  return {
    transact,
    read: (fleet) => snapshot(fleet, "state"),
    readOutline: (fleet) => snapshot(fleet, "outline"),
    remove: access.remove,
    onWritten: (listener) => void listeners.push(listener),
    fleets: access.fleets,
    renewLease: access.renewLease,
  };
}

/** Defines the scripts on the connection. */
export function accessOf(redis: Redis): FleetAccess {
  redis.defineCommand("layercastCommit", { numberOfKeys: 4, lua: COMMIT_SCRIPT });
  redis.defineCommand("layercastRead", { lua: READ_SCRIPT });
  redis.defineCommand("layercastRemove", { numberOfKeys: 3, lua: REMOVE_SCRIPT });
  redis.defineCommand("layercastLease", { numberOfKeys: 1, lua: LEASE_SCRIPT });
  const commands = redis as Commands;
  return {
    async read(fleet, keys, field = "state") {
      const [state, leases, seconds, micros, redisRunId, ...stored] = await commands.layercastRead(
        2 + keys.length,
        KEYS.fleet(fleet),
        KEYS.leases(fleet),
        ...keys,
        field,
      );
      const now = Number(seconds) * 1000 + Math.floor(Number(micros) / 1000);
      return {
        state: state === null ? null : (JSON.parse(state) as FleetState),
        context: { now, redisRunId, leaseValid: leaseCheck(leases, now) },
        stored,
      };
    },
    async write(write) {
      const { fleet } = write;
      const [key, leases] = [KEYS.fleet(fleet), KEYS.leases(fleet)];
      const done = await commands.layercastCommit(key, leases, KEYS.fleets, KEYS.reloads, JSON.stringify(write));
      return Number(done) === 1;
    },
    fleets: () => redis.smembers(KEYS.fleets),
    async remove(fleet, version) {
      const keys = [KEYS.fleet(fleet), KEYS.leases(fleet), KEYS.fleets] as const;
      await commands.layercastRemove(...keys, fleet, String(version));
    },
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
