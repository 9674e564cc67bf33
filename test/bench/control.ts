// What the control path costs: a model so small that its bytes take no time, from the submit to the answer that says
// committed, by turns from the one checkpoint to the other.

import { join } from "node:path";
import type { ReloadView } from "../../orchestrator/contract/reload.js";
import type { Case, Check, Row } from "./case.js";
import { allCommitted, checkGoldens, FIXTURES, startBenchFleet, type TimedReload } from "./fleet.js";
import { median, quantile } from "./statistics.js";

const RANKS = 2;
/** A serving orchestrator has long been compiled; its first reloads run in the interpreter, at half the speed. */
const WARM_UP = 150;
const RELOADS = 50;
const SCHEME = "fp8-channel";
const MODEL = "tiny-qwen3";
const TARGET = { median: 40, p99: 100 };

export const control: Case = {
  name: "control",
  says: `${MODEL} on ${RANKS} CPU ranks, v1 and v2 by turns, submit to the long poll's answer`,
  columns: [
    { key: "median_ms", title: "median ms" },
    { key: "target_median_ms", title: "target", decimals: 0 },
    { key: "p99_ms", title: "p99 ms" },
    { key: "target_p99_ms", title: "target", decimals: 0 },
    { key: "reloads", title: "reloads", decimals: 0 },
  ],
  async run({ reloads, directory }) {
    const checkpoints = join(FIXTURES, "checkpoints", MODEL);
    const fleet = await startBenchFleet({ tp: RANKS, directory, sources: checkpoints });
    try {
      const submit = (turn: number) => fleet.reload(join(checkpoints, versionOf(turn)), { recipe: { scheme: SCHEME } });
      for (let turn = 0; turn < WARM_UP; turn++) await submit(turn);
      const timed: TimedReload[] = [];
      for (let turn = 0; turn < (reloads ?? RELOADS); turn++) timed.push(await submit(turn));
      return rowsOf(timed, [
        allCommitted(timed),
        await checkGoldens(fleet, { model: MODEL, version: versionOf(timed.length - 1), scheme: SCHEME, ranks: RANKS }),
      ]);
    } finally {
      await fleet.stop();
    }
  },
};

function versionOf(turn: number): string {
  return turn % 2 === 0 ? "v1" : "v2";
}

const PHASES = ["queued", "plan", "load", "finalize", "commit"] as const satisfies (keyof ReloadView["timing_ms"])[];

function rowsOf(timed: readonly TimedReload[], checks: Check[]): Row[] {
  const recorded = (phase: keyof ReloadView["timing_ms"]) =>
    timed.map(({ reload }) => reload.timing_ms[phase] ?? Number.NaN);
  const outside = timed.map(({ reload, clientMs }) => clientMs - (reload.timing_ms.total ?? Number.NaN));
  return [
    rowOf(
      "submit to committed",
      timed.map(({ clientMs }) => clientMs),
      checks,
      TARGET,
    ),
    rowOf("  by the record", recorded("total"), []),
    ...PHASES.map((phase) => rowOf(`  ${phase}`, recorded(phase), [])),
    rowOf("  HTTP both ways", outside, []),
    rowOf(
      "engine stopped",
      timed.map(({ reload }) => reload.engine_stopped_ms ?? Number.NaN),
      [],
    ),
  ];
}

function rowOf(
  what: string,
  samples: number[],
  checks: Check[],
  target: { median: number; p99: number } | null = null,
): Row {
  const values = {
    median_ms: median(samples),
    target_median_ms: target?.median ?? null,
    p99_ms: quantile(samples, 0.99),
    target_p99_ms: target?.p99 ?? null,
    reloads: samples.length,
  };
  return { what, values, checks };
}
