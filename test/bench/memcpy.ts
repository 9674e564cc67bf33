// The floor beside which the load is shown: threads that do nothing but copy memory to memory, all at once. Each has memory of
// its own, touched before the clock starts; the clock includes one message to the threads and back, some tenths of a millisecond.

import { once } from "node:events";
import { Worker } from "node:worker_threads";
import { median } from "./statistics.js";

/** Milliseconds that `threads` threads take to copy `bytes` bytes in all, so that as many are read and as many written. */
export async function timeMemcpy(bytes: number, threads: number, rounds: number): Promise<number> {
  const workerData = { bytes: Math.ceil(bytes / threads) };
  const script = new URL("./memcpy-thread.js", import.meta.url);
  const workers = Array.from({ length: threads }, () => new Worker(script, { workerData }));
  try {
    await Promise.all(workers.map((worker) => once(worker, "message")));
    const tookMs: number[] = [];
    for (let round = 0; round < rounds; round++) {
      const startedAt = performance.now();
      const copied = workers.map((worker) => once(worker, "message"));
      for (const worker of workers) worker.postMessage("copy");
      await Promise.all(copied);
      tookMs.push(performance.now() - startedAt);
    }
    return median(tookMs);
  } finally {
    await Promise.all(workers.map((worker) => worker.terminate()));
  }
}
