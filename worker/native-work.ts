// Native calls under a deadline. A call past its deadline is told to stop and keeps its claim on staging until it has; if
// it does not within the grace time, the process ends, for a thread that may still write must not outlive its claim (P2).

import { type Cancel, isNativeError, type NativeCore } from "../native/native.js";
import { LayercastError } from "../orchestrator/contract/errors.js";

export interface NativeWork {
  /** Runs one call; rejects with `deadline_exceeded` or `cancelled` only after no thread works for it any more. */
  run<Result>(what: string, deadlineMs: number, call: (cancel: Cancel) => Promise<Result>): Promise<Result>;
  /** Tells every call in flight to stop. */
  cancelAll(): void;
  /** Resolves when no call is in flight. */
  drained(): Promise<void>;
}

const GRACE_MS = 10_000;

/** How long a call may take that has so many bytes to read or to write. */
export function callDeadlineMs(bytes: number): number {
  return CALL_BASE_MS + bytes / SLOWEST_BYTES_PER_MS;
}

const CALL_BASE_MS = 30_000;
const SLOWEST_BYTES_PER_MS = 20_000;

export function openNativeWork(core: NativeCore, exitStuck: (what: string) => void): NativeWork {
  const inFlight = new Map<Cancel, Promise<unknown>>();

  return {
    async run(what, deadlineMs, call) {
      const cancel = core.createCancel();
      let timedOut = false;
      let grace: NodeJS.Timeout | null = null;
      const deadline = setTimeout(() => {
        timedOut = true;
        core.cancel(cancel);
        grace = setTimeout(() => exitStuck(what), GRACE_MS);
      }, deadlineMs);
      const work = call(cancel);
      inFlight.set(cancel, work);
      try {
        return await work;
      } catch (error) {
        if (!isNativeError(error) || error.code !== "NATIVE_CANCELLED") throw error;
        if (!timedOut) throw new LayercastError("cancelled", `${what} was cancelled`);
        throw new LayercastError("deadline_exceeded", `${what} took longer than ${deadlineMs} ms and was stopped`, {
          deadlineMs,
        });
      } finally {
        inFlight.delete(cancel);
        clearTimeout(deadline);
        if (grace !== null) clearTimeout(grace);
      }
    },
    cancelAll() {
      for (const cancel of inFlight.keys()) core.cancel(cancel);
    },
    async drained() {
      while (inFlight.size > 0) await Promise.allSettled(inFlight.values());
    },
  };
}
