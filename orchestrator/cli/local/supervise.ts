// One child process that must keep running: started, started again when it ends (quickly the first time, then backing off),
// and stopped for good on request.

import type { ChildProcess } from "node:child_process";
import { endProcess, exitWords, signalGroup } from "./owned-process.js";

export interface SupervisedChild {
  readonly name: string;
  /** How long it may take to end after SIGTERM. */
  readonly graceMs: number;
  /** A child that ran this long was healthy: the next restart is quick again. */
  readonly healthyAfterMs?: number | undefined;
  spawn(): ChildProcess;
}

export interface SupervisorEvents {
  started(child: ChildProcess): void;
  /** `restartInMs` is null when it is left dead: a child that says its own settings are wrong dies again each time. */
  ended(words: string, restartInMs: number | null): void;
}

export interface Supervised {
  readonly name: string;
  /** SIGTERM, then SIGKILL after the grace; never started again. */
  stop(): Promise<void>;
  /** SIGKILL now; never started again. */
  kill(): void;
}

/** What a child exits with when starting it again cannot help (wrong usage). */
export const USAGE_EXIT_CODE = 2;

const FIRST_DELAY_MS = 100;
const MAX_DELAY_MS = 2_000;
const HEALTHY_MS = 5_000;

/** Before the restart after `failures` short lives in a row. */
export function restartDelayMs(failures: number): number {
  return Math.min(FIRST_DELAY_MS * 2 ** (failures - 1), MAX_DELAY_MS);
}

export function supervise(spec: SupervisedChild, events: SupervisorEvents): Supervised {
  let child: ChildProcess | null = null;
  let timer: NodeJS.Timeout | null = null;
  let failures = 0;
  let stopping = false;

  const start = () => {
    timer = null;
    const startedAt = performance.now();
    const running = spec.spawn();
    child = running;
    running.once("exit", () => ended(running, performance.now() - startedAt));
    events.started(running);
  };

  const ended = (ran: ChildProcess, livedMs: number) => {
    if (stopping) return;
    failures = livedMs >= (spec.healthyAfterMs ?? HEALTHY_MS) ? 1 : failures + 1;
    if (ran.exitCode === USAGE_EXIT_CODE) return events.ended(exitWords(ran), null);
    const delayMs = restartDelayMs(failures);
    events.ended(exitWords(ran), delayMs);
    timer = setTimeout(start, delayMs);
  };

  const retire = () => {
    stopping = true;
    if (timer !== null) clearTimeout(timer);
  };

  start();
  return {
    name: spec.name,
    stop: async () => {
      retire();
      if (child !== null) await endProcess(child, spec.graceMs);
    },
    kill: () => {
      retire();
      if (child !== null) signalGroup(child, "SIGKILL");
    },
  };
}
