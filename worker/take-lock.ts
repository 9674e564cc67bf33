// One process an arena (P9): a successor ends whoever holds the rank's lock, waits until the lock is free, and then holds it
// for life. The kernel frees it with the process, however that ends.

import { setTimeout as delay } from "node:timers/promises";
import type { NativeCore } from "../native/native.js";
import { LayercastError } from "../orchestrator/contract/errors.js";

const ASK_MS = 500;
const DEADLINE_MS = 10_000;
const POLL_MS = 10;

export async function takeLock(core: NativeCore, path: string, onHolder: (pid: number) => void): Promise<void> {
  const startedAt = performance.now();
  let holder = core.acquireLock(path);
  if (holder !== 0) onHolder(holder);
  while (holder !== 0) {
    const waitedMs = performance.now() - startedAt;
    if (waitedMs > DEADLINE_MS) {
      throw new LayercastError("internal", `process ${holder} holds ${path} and does not end; end it by hand`, {
        holder,
        path,
      });
    }
    end(holder, waitedMs < ASK_MS ? "SIGTERM" : "SIGKILL");
    await delay(POLL_MS);
    holder = core.acquireLock(path);
  }
}

function end(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // it has ended in the meantime
  }
}
