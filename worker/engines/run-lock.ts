// The run lock (P14): whoever computes with a rank's arena holds `running.lock` shared, and a swap holds it alone. The kernel gives it
// back with the process, however that dies, so nobody computes with a mix of two weight versions, whatever message is lost.

import type { NativeCore } from "../../native/native.js";
import { LayercastError } from "../../orchestrator/contract/errors.js";

/** Live bytes change while no engine of this rank computes. */
export interface EngineGate {
  whileStill<Result>(swap: { epoch: number; reload: string }, run: () => Promise<Result>): Promise<Result>;
}

export interface RunLockOptions {
  core: Pick<NativeCore, "openLock" | "tryLock" | "unlock">;
  path: string;
  clock: { now(): number; delay(ms: number): Promise<unknown> };
  /** Asks the engines to stand still, and lets them go on; the lock alone says whether they do. */
  links: { stop(epoch: number, reload: string): void; go(epoch: number): void; names(): string[] };
}

const POLL_MS = 1;
/** A step, and what is queued behind it, takes a second at most; an engine that takes longer hangs. */
export const TAKE_WITHIN_MS = 10_000;
/** Other engines of the rank serve that long before they are asked to stand still again. */
const PAUSE_MS = 1_000;

export function openRunLock({ core, path, clock, links }: RunLockOptions): EngineGate {
  const lock = core.openLock(path);
  let notBefore = 0;

  /** Throws `engine_running`, which may be tried again. */
  async function takeAlone(): Promise<void> {
    const deadline = clock.now() + TAKE_WITHIN_MS;
    while (!core.tryLock(lock, "exclusive")) {
      if (clock.now() >= deadline) {
        notBefore = clock.now() + PAUSE_MS;
        throw stillRunning(path, links.names());
      }
      await clock.delay(POLL_MS);
    }
  }

  return {
    async whileStill({ epoch, reload }, run) {
      if (clock.now() < notBefore) await clock.delay(notBefore - clock.now());
      links.stop(epoch, reload);
      try {
        await takeAlone();
        try {
          return await run();
        } finally {
          core.unlock(lock);
        }
      } finally {
        links.go(epoch);
      }
    },
  };
}

function stillRunning(path: string, names: string[]): LayercastError {
  const who = names.length === 0 ? "A process that has not said hello" : `Engine ${names.join(" or ")}`;
  return new LayercastError(
    "engine_running",
    `${who} has not given back ${path} within ${TAKE_WITHIN_MS} ms, so no live byte may change; the swap is tried again. ` +
      `If the engine hangs, end it; fuser ${path} names whoever has the file open.`,
    { path, engines: names },
  );
}
