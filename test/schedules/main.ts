// Runs the schedules of the seeds FROM to TO (exclusive) and prints one line of JSON: how many ran, how many events they had,
// and the first that failed, with its story. `--within MS` ends it earlier.

import { parseArgs } from "node:util";
import { runSchedule } from "./schedule.js";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { within: { type: "string" } },
});
const [from = 0, to = 1] = positionals.map(Number);
const endAt = performance.now() + Number(values.within ?? 3_600_000);

let ran = 0;
let events = 0;
let failed = null;
for (let seed = from; seed < to && failed === null && performance.now() < endAt; seed++) {
  const outcome = await runSchedule(seed, false);
  ran += 1;
  events += outcome.events;
  if (outcome.violations.length > 0) failed = await runSchedule(seed, true);
}
// Not by itself: native calls of killed processes have timers that nobody waits for.
process.stdout.write(`${JSON.stringify({ ran, events, failed })}\n`, () => process.exit(0));
