// How soon a fleet serves again when one of its workers has been killed: seen by a router that asks again and again.

import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { Case, Row } from "./case.js";
import { allCommitted, type BenchFleet, checkGoldens, FIXTURES, startBenchFleet } from "./fleet.js";
import { median } from "./statistics.js";

const RANKS = 2;
const DEATHS = 6;
const MODEL = "tiny-qwen3";
const SCHEME = "fp8-channel";
const TARGET_MS = 3_000;
/** `layercast up` restarts a worker that has lived for 5 s after 100 ms; one that dies again and again later and later. */
const LIFE_MS = 5_500;
const POLL_MS = 5;
const DEADLINE_MS = 30_000;

export const heal: Case = {
  name: "heal",
  says: `${MODEL} on ${RANKS} CPU ranks: SIGKILL of a worker to a routable fleet with its successor`,
  columns: [
    { key: "median_ms", title: "median ms", decimals: 0 },
    { key: "worst_ms", title: "worst ms", decimals: 0 },
    { key: "target_worst_ms", title: "target", decimals: 0 },
    { key: "deaths", title: "deaths", decimals: 0 },
  ],
  async run({ reloads, directory, say }) {
    const checkpoints = join(FIXTURES, "checkpoints", MODEL);
    const fleet = await startBenchFleet({ tp: RANKS, directory, sources: checkpoints });
    try {
      const first = await fleet.reload(join(checkpoints, "v1"), { recipe: { scheme: SCHEME } });
      const samples: number[] = [];
      for (let death = 0; death < (reloads ?? DEATHS); death++) {
        await delay(LIFE_MS);
        samples.push(await killAndWait(fleet, death % RANKS));
        say(`${samples.at(-1)?.toFixed(0)} ms`);
      }
      const goldens = await checkGoldens(fleet, { model: MODEL, version: "v1", scheme: SCHEME, ranks: RANKS });
      return [rowOf(samples, [allCommitted([first]), goldens])];
    } finally {
      await fleet.stop();
    }
  },
};

function rowOf(samples: number[], checks: Row["checks"]): Row {
  const values = {
    median_ms: median(samples),
    worst_ms: Math.max(...samples),
    target_worst_ms: TARGET_MS,
    deaths: samples.length,
  };
  return { what: "worker's death to routable", values, checks };
}

async function killAndWait({ client, name }: BenchFleet, rank: number): Promise<number> {
  const victim = (await client.fleet(name)).ranks[rank];
  if (victim === undefined) throw new Error(`the fleet has no rank ${rank}`);
  const startedAt = performance.now();
  process.kill(victim.pid, "SIGKILL");
  while (performance.now() - startedAt < DEADLINE_MS) {
    const fleet = await client.fleet(name);
    if (fleet.routable && fleet.ranks[rank]?.incarnation !== victim.incarnation) return performance.now() - startedAt;
    await delay(POLL_MS);
  }
  throw new Error(`the fleet is not routable ${DEADLINE_MS} ms after the death of rank ${rank}`);
}
