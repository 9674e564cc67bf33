// The floor beside which the load is shown: threads that do nothing but copy memory to memory, all at once. Each has memory of
// its own, touched before the clock starts; the clock includes one message to the threads and back, some tenths of a millisecond.

import { once } from "node:events";
import { Worker } from "node:worker_threads";

export interface Memcpy {
  /** Milliseconds until all of the bytes are copied. */
  round(): Promise<number>;
  close(): Promise<void>;
}

/** `threads` threads that copy `bytes` bytes in all each round, so that as many are read and as many written. */
export async function openMemcpy(bytes: number, threads: number): Promise<Memcpy> {
  const workerData = { bytes: Math.ceil(bytes / threads) };
  const script = new URL("./memcpy-thread.js", import.meta.url);
  const workers = Array.from({ length: threads }, () => new Worker(script, { workerData }));
  const answers = () => Promise.all(workers.map((worker) => once(worker, "message")));
  await answers();
  return {
    async round() {
      const startedAt = performance.now();
      const copied = answers();
      for (const worker of workers) worker.postMessage("copy");
      await copied;
      return performance.now() - startedAt;
    },
    async close() {
      await Promise.all(workers.map((worker) => worker.terminate()));
    },
  };
}
