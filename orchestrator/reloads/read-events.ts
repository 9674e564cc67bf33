// A reload's events, for whoever follows it. Those who have read equally far share each read: two thousand streams of one reload
// cost Redis what one does.

import type { Redis } from "ioredis";
import { KEYS } from "../contract/jobs.js";
import { type ReloadEventName, type ReloadStateName, TERMINAL_STATES } from "../contract/reload.js";
import { isTerminal, type ReloadRecord } from "../fleet/state.js";
import type { Follower } from "./follow-reload.js";
import type { ReloadEvent } from "./reloads.js";

const EVENTS_PER_READ = 200;

interface Read {
  events: readonly ReloadEvent[];
  /** There is nothing more to come. */
  isOver: boolean;
}

export interface EventReader {
  /** The reload's events after `afterId`, from the stream's start when null; ends with the terminal state. */
  follow(reload: string, afterId: string | null, signal: AbortSignal): AsyncGenerator<ReloadEvent>;
}

export function openEventReader(redis: Redis, follower: Follower): EventReader {
  const reading = new Map<string, Promise<Read>>();

  /** A read that began before the last message may lack what the message speaks of: it is not shared. */
  function readAfter(reload: string, last: string | null): Promise<Read> {
    const key = `${reload} ${last ?? ""} ${follower.heard()}`;
    const known = reading.get(key);
    if (known !== undefined) return known;
    const read = readEvents(redis, reload, last).finally(() => reading.delete(key));
    reading.set(key, read);
    return read;
  }

  return {
    async *follow(reload, afterId, signal) {
      let last = afterId;
      while (!signal.aborted) {
        // Armed before reading, so that a change between the read and the wait is not slept through.
        const changed = follower.changed(reload, null, signal);
        const { events, isOver } = await readAfter(reload, last);
        for (const event of events) {
          last = event.id;
          yield event;
          if (isLastEvent(event)) return;
        }
        if (isOver) return;
        if (events.length < EVENTS_PER_READ) await changed;
      }
    },
  };
}

async function readEvents(redis: Redis, reload: string, last: string | null): Promise<Read> {
  const from = last === null ? "-" : `(${last}`;
  const entries = await redis.xrange(KEYS.events(reload), from, "+", "COUNT", EVENTS_PER_READ);
  const events = entries.map(([id, fields]) => decodeEvent(id, fields));
  return { events, isOver: events.length === 0 && (await hasEnded(redis, reload)) };
}

/** For a reader that connects again after the last event. */
async function hasEnded(redis: Redis, reload: string): Promise<boolean> {
  const record = await redis.hget(KEYS.reload(reload), "record");
  return record === null || isTerminal(JSON.parse(record) as ReloadRecord);
}

function decodeEvent(id: string, fields: string[]): ReloadEvent {
  const [, name, , payload] = fields;
  return { id, name: name as ReloadEventName, payload: JSON.parse(payload ?? "null") };
}

function isLastEvent({ name, payload }: ReloadEvent): boolean {
  return name === "state" && TERMINAL_STATES.includes((payload as { state: ReloadStateName }).state);
}
