// One thread of the fuzzing: judges every `threads`-th input and says in shared memory which one it is at, so that one that
// never ends is seen from outside.

import { parentPort, workerData } from "node:worker_threads";
import { seededRandom } from "../../schedules/random.js";
import { TARGETS, type Target } from "./laws.js";

export interface ThreadOrder {
  seed: number;
  from: number;
  to: number;
  step: number;
  /** One Int32: the input at hand. */
  at: SharedArrayBuffer;
}

export interface Failure {
  number: number;
  target: string;
  broken: string;
  /** The input, cut. */
  shown: string;
}

export interface ThreadReport {
  ran: number;
  /** By target. */
  accepted: Record<string, number>;
  refused: Record<string, number>;
  slowestMs: number;
  failure: Failure | null;
}

const LONGEST_SHOWN = 20_000;

/** The same seed and number give the same input, whichever thread makes it. */
function inputOf(seed: number, number: number): { target: Target; input: ReturnType<Target["next"]> } {
  const random = seededRandom(Math.imul(seed, 0x9e3779b1) ^ Math.imul(number + 1, 0x85ebca6b));
  let roll = random.between(0, 99);
  const target = TARGETS.find(({ share }) => {
    roll -= share;
    return roll < 0;
  });
  if (target === undefined) throw new Error("the targets' shares are less than a hundred");
  return { target, input: target.next(random) };
}

function fuzz({ seed, from, to, step, at }: ThreadOrder): ThreadReport {
  const zero = () => Object.fromEntries(TARGETS.map(({ name }) => [name, 0]));
  const report: ThreadReport = { ran: 0, accepted: zero(), refused: zero(), slowestMs: 0, failure: null };
  const current = new Int32Array(at);
  for (let number = from; number < to && report.failure === null; number += step) {
    Atomics.store(current, 0, number);
    const { target, input } = inputOf(seed, number);
    const startedAt = performance.now();
    const { accepted, broken } = input.judge();
    report.slowestMs = Math.max(report.slowestMs, performance.now() - startedAt);
    const counts = accepted ? report.accepted : report.refused;
    counts[target.name] = (counts[target.name] ?? 0) + 1;
    report.ran += 1;
    if (broken !== null) {
      report.failure = { number, target: target.name, broken, shown: input.shown.slice(0, LONGEST_SHOWN) };
    }
  }
  return report;
}

parentPort?.postMessage(fuzz(workerData as ThreadOrder));
