// A reload's events: one stream in Redis. States and warnings are few and stay as long as the record; ticks (progress, retries,
// buckets) grow with ranks, layers and time, so that only the newest stay. Whoever reads the stream from its start therefore sees
// how the reload began.

import type { Redis } from "ioredis";
import { CHANNELS, KEYS, TICKS_KEPT } from "../contract/jobs.js";

/**
 * Lua: tick(events, ticks, kept, name, payload) adds an event to the stream `events` and removes the oldest tick beyond `kept`;
 * `ticks` is the list of their ids.
 */
export const TICK = `
local function tick(events, ticks, kept, name, payload)
  local id = redis.call('XADD', events, '*', 'name', name, 'payload', payload)
  if redis.call('RPUSH', ticks, id) > tonumber(kept) then redis.call('XDEL', events, redis.call('LPOP', ticks)) end
end
`;

/** KEYS reload, events, ticks. ARGV field, value, kept, name, payload, channel, reload id. */
const TELL = `${TICK}
local field, value, kept, name, payload, channel, reload = unpack(ARGV)
redis.call('HSET', KEYS[1], field, value)
tick(KEYS[2], KEYS[3], kept, name, payload)
redis.call('PUBLISH', channel, reload)
`;

interface Commands extends Redis {
  layercastTell(record: string, events: string, ticks: string, ...args: string[]): Promise<null>;
}

/** What a rank tells of its work: a field of the reload's hash, and the event that says so. */
export interface Told {
  reload: string;
  field: string;
  value: unknown;
  name: string;
  payload: unknown;
}

export interface EventStore {
  tell(told: Told): Promise<void>;
}

export function openEventStore(redis: Redis): EventStore {
  redis.defineCommand("layercastTell", { numberOfKeys: 3, lua: TELL });
  const commands = redis as Commands;
  return {
    async tell({ reload, field, value, name, payload }) {
      const keys = [KEYS.reload(reload), KEYS.events(reload), KEYS.ticks(reload)] as const;
      const event = [String(TICKS_KEPT), name, JSON.stringify(payload)];
      await commands.layercastTell(...keys, field, JSON.stringify(value), ...event, CHANNELS.reload, reload);
    },
  };
}
