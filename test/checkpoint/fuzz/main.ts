// Judges inputs FROM to TO (exclusive) of a seed on all cores, and prints one line of JSON: how many were judged, how many of
// them each reader accepted, and what broke a law. An input that takes too long, or ends its thread, breaks one too.
// One again: `main.js --seed S FROM TO`, with the numbers that a failure prints.

import { availableParallelism } from "node:os";
import { parseArgs } from "node:util";
import { Worker } from "node:worker_threads";
import type { Failure, ThreadOrder, ThreadReport } from "./thread.js";

export interface Fuzzed {
  seed: number;
  ran: number;
  accepted: Record<string, number>;
  refused: Record<string, number>;
  slowestMs: number;
  failures: Failure[];
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { seed: { type: "string", default: "0" }, "hang-ms": { type: "string", default: "10000" } },
});
const seed = Number(values.seed);
const hangMs = Number(values["hang-ms"]);
const [from = 0, to = 1] = positionals.map(Number);
const threads = Math.min(to - from, Math.max(2, availableParallelism()));

const LOOK_EVERY_MS = 100;
const MEMORY_MIB = 256;

/** The report of one thread; it is ended when it stays at one input. */
function runThread(thread: number): Promise<ThreadReport> {
  const at = new SharedArrayBuffer(4);
  const order: ThreadOrder = { seed, from: from + thread, to, step: threads, at };
  const limits = { maxOldGenerationSizeMb: MEMORY_MIB };
  const worker = new Worker(new URL("thread.js", import.meta.url), { workerData: order, resourceLimits: limits });
  return new Promise((resolve) => {
    const current = new Int32Array(at);
    let seen = { number: -1, since: performance.now() };
    const gaveUp = (broken: string) => {
      const number = Atomics.load(current, 0);
      resolve({ ...NOTHING, failure: { number, target: "?", broken, shown: "" } });
    };
    const watch = setInterval(() => {
      const number = Atomics.load(current, 0);
      if (number !== seen.number) seen = { number, since: performance.now() };
      else if (performance.now() - seen.since > hangMs) {
        gaveUp(`takes longer than ${hangMs} ms`);
        void worker.terminate();
      }
    }, LOOK_EVERY_MS);
    worker.once("message", resolve);
    worker.once("error", (error) => gaveUp(`ends its thread: ${error}`));
    worker.once("exit", () => clearInterval(watch));
  });
}

const NOTHING: ThreadReport = { ran: 0, accepted: {}, refused: {}, slowestMs: 0, failure: null };

function sumOf(counts: Record<string, number>[]): Record<string, number> {
  const sum: Record<string, number> = {};
  for (const [name, count] of counts.flatMap(Object.entries<number>)) sum[name] = (sum[name] ?? 0) + count;
  return sum;
}

const reports = await Promise.all(Array.from({ length: threads }, (_, thread) => runThread(thread)));
const fuzzed: Fuzzed = {
  seed,
  ran: reports.reduce((sum, { ran }) => sum + ran, 0),
  accepted: sumOf(reports.map(({ accepted }) => accepted)),
  refused: sumOf(reports.map(({ refused }) => refused)),
  slowestMs: Math.max(...reports.map(({ slowestMs }) => slowestMs)),
  failures: reports.flatMap(({ failure }) => failure ?? []),
};
console.log(JSON.stringify(fuzzed));
