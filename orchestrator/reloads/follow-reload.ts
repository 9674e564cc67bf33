// Waiting for a reload to change. Pub/sub only wakes; what changed is read from the record, and a missed message costs at most a
// poll. All who wait are polled for together, so that they can share what they then read.

import { EventEmitter, once } from "node:events";
import type { Redis } from "ioredis";
import { type FleetMessage, parseFleetMessage } from "../contract/fleet-message.js";
import { CHANNELS } from "../contract/jobs.js";

export interface Follower {
  /** Nothing is heard before; resolves when Redis has taken the subscription. */
  listen(): Promise<void>;
  /** Resolves at the next change of the reload or the next poll, after `timeoutMs`, or at the abort, whichever is first. */
  changed(reload: string, timeoutMs: number | null, signal: AbortSignal): Promise<void>;
  /** The same, but only the end counts as a change, and there is no poll. */
  ended(reload: string, timeoutMs: number, signal: AbortSignal): Promise<void>;
  /** How many messages and polls there have been: whoever knows of the same number may share what he reads. */
  heard(): number;
  onFleetChanged(listener: (message: FleetMessage) => void): void;
}

const POLL_MS = 1_000;

export function openFollower(subscriber: Redis): Follower {
  const emitter = new EventEmitter();
  emitter.setMaxListeners(0);
  let heard = 0;
  subscriber.on("message", (channel: string, message: string) => {
    heard += 1;
    if (channel !== CHANNELS.fleet) {
      emitter.emit(`${channel} ${message}`);
      return;
    }
    const parsed = parseFleetMessage(message);
    if (parsed !== null) emitter.emit(channel, parsed);
  });
  setInterval(() => {
    heard += 1;
    for (const name of emitter.eventNames()) if (String(name).startsWith(`${CHANNELS.reload} `)) emitter.emit(name);
  }, POLL_MS).unref();
  const next = async (name: string, timeoutMs: number | null, signal: AbortSignal) => {
    const waiting = AbortSignal.any(timeoutMs === null ? [signal] : [signal, AbortSignal.timeout(timeoutMs)]);
    await once(emitter, name, { signal: waiting }).catch(() => {});
  };
  return {
    async listen() {
      await subscriber.subscribe(...Object.values(CHANNELS));
    },
    changed: (reload, timeoutMs, signal) => next(`${CHANNELS.reload} ${reload}`, timeoutMs, signal),
    ended: (reload, timeoutMs, signal) => next(`${CHANNELS.ended} ${reload}`, timeoutMs, signal),
    heard: () => heard,
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
  wake: Follower["ended"],
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
