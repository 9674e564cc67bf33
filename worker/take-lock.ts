// One process an arena (P9). A worker that finds its rank's lock held waits until it is free, and then holds it for life; the
// kernel frees it with the process, however that ends. A holder that still shows signs of life is left alone, unless this worker
// was told to take over. A holder that has stopped showing them is ended, but only where it is known to be a worker of this very
// PID namespace: elsewhere its number is some other process, perhaps this one.

import { statSync, utimesSync } from "node:fs";
import { hostname } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import type { NativeCore } from "../native/native.js";
import { LayercastError } from "../orchestrator/contract/errors.js";
import {
  argumentsOf,
  formatIdentity,
  isInOwnNamespace,
  ownIdentity,
  type ProcessIdentity,
  parseIdentity,
  startOf,
} from "./process-identity.js";

/** How often a holder touches the file that it has locked. */
const SIGN_EVERY_MS = 1_000;
/** As long as a rank's lease: a holder that has not touched the file for so long is hung, or is ending. */
export const SILENT_MS = 5_000;
/** How long a holder that is ended may take to end by itself. */
const ASK_MS = 500;
export const DEADLINE_MS = 15_000;
const POLL_MS = 10;

export interface TakeLockOptions {
  core: Pick<NativeCore, "acquireLock">;
  path: string;
  /** End the holder at once, signs of life or not. */
  takeOver: boolean;
  /** It is about to be ended. */
  onEnding(holder: ProcessIdentity): void;
}

/** What is known of processes and files; tests have others. */
export interface LockHost {
  own: ProcessIdentity | null;
  now(): number;
  delay(ms: number): Promise<unknown>;
  /** Changes with every sign of life. */
  lastSign(path: string): number;
  /** Whether the process of this namespace is there still, and a worker. */
  isWorker(holder: ProcessIdentity): boolean;
  kill(pid: number, signal: "SIGTERM" | "SIGKILL"): void;
}

export async function takeLock(options: TakeLockOptions, host: LockHost = thisHost()): Promise<void> {
  const { core, path, takeOver, onEnding } = options;
  const text = host.own === null ? `${process.pid}\n` : formatIdentity(host.own);
  const startedAt = host.now();
  let watched = { text: "", sign: 0, since: startedAt };
  let endingSince: number | null = null;
  for (let held = core.acquireLock(path, text); held !== null; held = core.acquireLock(path, text)) {
    const now = host.now();
    const sign = host.lastSign(path);
    const isNew = held !== watched.text;
    if (isNew) endingSince = null;
    const holder = parseIdentity(held);
    if (now - startedAt > DEADLINE_MS) throw stillHeld(path, holder, host);
    const reachable = holder !== null && mayEnd(holder, host);
    if (!isNew && sign !== watched.sign && endingSince === null && reachable && !takeOver) throw alive(path, holder);
    if (isNew || sign !== watched.sign) watched = { text: held, sign, since: now };
    if (reachable && (takeOver || endingSince !== null || now - watched.since >= SILENT_MS)) {
      if (endingSince === null) onEnding(holder);
      endingSince ??= now;
      host.kill(holder.pid, now - endingSince < ASK_MS ? "SIGTERM" : "SIGKILL");
    }
    await host.delay(POLL_MS);
  }
}

/** The file itself, whatever it is called: two containers of one host may have other directories at one path. */
export function identifyLock(path: string): string {
  const { dev, ino } = statSync(path, { bigint: true });
  return `${ownIdentity()?.boot ?? hostname()}:${dev}:${ino}`;
}

/** Shows signs of life for whoever waits for the lock; returns what ends them. */
export function showLife(path: string): () => void {
  const touch = () => {
    try {
      utimesSync(path, new Date(), new Date());
    } catch {
      // The directory was removed: nobody waits there any more.
    }
  };
  const timer = setInterval(touch, SIGN_EVERY_MS);
  timer.unref();
  return () => clearInterval(timer);
}

/** Never this process itself, which may have the lock by another descriptor. */
function mayEnd(holder: ProcessIdentity, { own, isWorker }: LockHost): boolean {
  return own !== null && isInOwnNamespace(holder, own) && holder.pid !== own.pid && isWorker(holder);
}

function alive(path: string, { pid, host }: ProcessIdentity): LayercastError {
  return new LayercastError(
    "invalid_request",
    `Worker process ${pid} on ${host} holds this rank's arena (${path}) and is alive. ` +
      "Check --rank, --replica, --fleet and --run-dir, or replace that worker with --take-over.",
    { path, pid, host },
  );
}

function stillHeld(path: string, holder: ProcessIdentity | null, { own }: LockHost): LayercastError {
  const isElsewhere = holder !== null && own !== null && !isInOwnNamespace(holder, own);
  const who =
    holder === null
      ? "a process that it does not name"
      : `process ${holder.pid} of host ${holder.host}${isElsewhere ? ", in another PID namespace or on another host," : ""}`;
  return new LayercastError(
    "io_error",
    `${path} was locked for ${DEADLINE_MS} ms by ${who} and this worker may not end it: stop it there, then start this one again.`,
    { path, ...holder },
  );
}

function thisHost(): LockHost {
  return {
    own: ownIdentity(),
    now: () => performance.now(),
    delay,
    lastSign: (path) => statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0,
    isWorker: ({ pid, startedAt }) => startOf(pid) === startedAt && argumentsOf(pid).includes("worker"),
    kill(pid, signal) {
      try {
        process.kill(pid, signal);
      } catch {
        // It has ended in the meantime.
      }
    },
  };
}
