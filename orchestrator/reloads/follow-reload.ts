// Waiting for a reload to change. Pub/sub only wakes; what changed is read from the record and the event stream, and a
// missed message costs at most a poll.

import { EventEmitter, once } from "node:events";
import type { Redis } from "ioredis";
import { type FleetMessage, parseFleetMessage } from "../contract/fleet-message.js";
import { CHANNELS, KEYS } from "../contract/jobs.js";
import { type ReloadEventName, type ReloadStateName, TERMINAL_STATES } from "../contract/reload.js";
import { isTerminal, type ReloadRecord } from "./protocol/state.js";
import type { ReloadEvent } from "./reloads.js";

export interface Follower {
  /** Resolves at the next change of the reload, after `timeoutMs`, or at the abort, whichever is first. */
  changed(reload: string, timeoutMs: number, signal: AbortSignal): Promise<void>;
  /** The same, but only the end counts as a change. */
  ended(reload: string, timeoutMs: number, signal: AbortSignal): Promise<void>;
  onFleetChanged(listener: (message: FleetMessage) => void): void;
}

const POLL_MS = 1_000;
const EVENTS_PER_READ = 200;

export async function openFollower(subscriber: Redis): Promise<Follower> {
  const emitter = new EventEmitter();
  emitter.setMaxListeners(0);
  subscriber.on("message", (channel: string, message: string) => {
    if (channel !== CHANNELS.fleet) {
      emitter.emit(`${channel} ${message}`);
      return;
    }
    const parsed = parseFleetMessage(message);
    if (parsed !== null) emitter.emit(channel, parsed);
  });
  await subscriber.subscribe(...Object.values(CHANNELS));
  const heard = (channel: string) => async (reload: string, timeoutMs: number, signal: AbortSignal) => {
    const waiting = AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]);
    await once(emitter, `${channel} ${reload}`, { signal: waiting }).catch(() => {});
  };
  return {
    changed: heard(CHANNELS.reload),
    ended: heard(CHANNELS.ended),
    onFleetChanged: (listener) => void emitter.on(CHANNELS.fleet, listener),
  };
}

export interface Wait {
  reload: string;
  waitMs: number;
  /** A message may be missed; then a wait lasts this much longer at most. */
  pollMs: number;
  signal: AbortSignal;
}

/** Reads until what it reads is over, the wait is, or the signal is aborted; `wake` is one of the follower's. */
export async function readUntil<Value>(
  { reload, waitMs, pollMs, signal }: Wait,
  wake: Follower["changed"],
  read: () => Promise<Value>,
  isOver: (value: Value) => boolean,
): Promise<Value> {
  const until = Date.now() + waitMs;
  for (;;) {
    // Armed before reading, so that a change between the read and the wait is not slept through.
    const leftMs = until - Date.now();
    const changed = leftMs > 0 ? wake(reload, Math.min(leftMs, pollMs), signal) : null;
    const value = await read();
    if (changed === null || signal.aborted || isOver(value)) return value;
    await changed;
  }
}

/** The reload's events after `afterId`, from the stream's start when null; ends with the terminal state. */
export async function* followEvents(
  redis: Redis,
  follower: Follower,
  reload: string,
  afterId: string | null,
  signal: AbortSignal,
): AsyncGenerator<ReloadEvent> {
  let last = afterId;
  while (!signal.aborted) {
    // Armed before reading, so that what comes between the read and the wait is not slept through.
    const changed = follower.changed(reload, POLL_MS, signal);
    const from = last === null ? "-" : `(${last}`;
    const entries = await redis.xrange(KEYS.events(reload), from, "+", "COUNT", EVENTS_PER_READ);
    for (const [id, fields] of entries) {
      const event = decodeEvent(id, fields);
      last = id;
      yield event;
      if (isLastEvent(event)) return;
    }
    if (entries.length === 0 && (await hasEnded(redis, reload))) return;
    if (entries.length < EVENTS_PER_READ) await changed;
  }
}

/** For who comes back after the last event. */
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
