// How long engines stand still: four ranks of a model so small that its swap takes no time, without hooks and with an engine
// that answers at once.

import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { type Case, check, type Row } from "./case.js";
import { allCommitted, type BenchFleet, checkGoldens, FIXTURES, startBenchFleet, type TimedReload } from "./fleet.js";
import { median, quantile } from "./statistics.js";

const RANKS = 4;
const WARM_UP = 100;
const RELOADS = 50;
const MODEL = "tiny-qwen3";
const SCHEME = "fp8-channel";
const TARGET_MS = 5;

export const stop: Case = {
  name: "stop",
  says: `${MODEL} on ${RANKS} CPU ranks: engine_stopped_ms, from the first swap (or pause) to the last swap's (or resume's) end`,
  columns: [
    { key: "median_ms", title: "median ms" },
    { key: "target_median_ms", title: "target", decimals: 0 },
    { key: "p99_ms", title: "p99 ms" },
    { key: "reloads", title: "reloads", decimals: 0 },
  ],
  async run({ reloads, directory }) {
    const checkpoints = join(FIXTURES, "checkpoints", MODEL);
    const fleet = await startBenchFleet({ tp: RANKS, directory, sources: checkpoints });
    const engine = await startEngine();
    try {
      const submit = (turn: number) => fleet.reload(join(checkpoints, versionOf(turn)), { recipe: { scheme: SCHEME } });
      for (let turn = 0; turn < WARM_UP; turn++) await submit(turn);
      const rows = [await measure("without hooks", fleet, submit, reloads ?? RELOADS, TARGET_MS)];
      const { port } = engine.server.address() as AddressInfo;
      const call = (what: string) => ({ url: `http://127.0.0.1:${port}/${what}` });
      await fleet.client.setHooks(fleet.name, { pause: call("pause"), resume: call("resume") });
      const hooked = await measure("with hooks", fleet, submit, reloads ?? RELOADS, null);
      const calls = engine.calls.join(" ");
      const inTurn = /^(pause resume ?)+$/.test(calls) ? [] : [calls.slice(0, 200)];
      return [...rows, { ...hooked, checks: [...hooked.checks, check("pause, then resume, each time", inTurn)] }];
    } finally {
      engine.server.close();
      await fleet.stop();
    }
  },
};

function versionOf(turn: number): string {
  return turn % 2 === 0 ? "v1" : "v2";
}

async function measure(
  what: string,
  fleet: BenchFleet,
  submit: (turn: number) => Promise<TimedReload>,
  reloads: number,
  targetMs: number | null,
): Promise<Row> {
  const timed: TimedReload[] = [];
  for (let turn = 0; turn < reloads; turn++) timed.push(await submit(turn));
  const samples = timed.map(({ reload }) => reload.engine_stopped_ms ?? Number.NaN);
  const values = {
    median_ms: median(samples),
    target_median_ms: targetMs,
    p99_ms: quantile(samples, 0.99),
    reloads: samples.length,
  };
  const last = await submit(0); // to the version whose bytes are known for this many ranks
  const goldens = await checkGoldens(fleet, {
    model: MODEL,
    version: versionOf(0),
    scheme: SCHEME,
    ranks: RANKS,
  });
  return { what, values, checks: [allCommitted([...timed, last]), goldens] };
}

async function startEngine(): Promise<{ server: Server; calls: string[] }> {
  const calls: string[] = [];
  const server = createServer((request, response) => {
    calls.push(request.url?.slice(1) ?? "");
    response.end();
  });
  await new Promise<void>((resolve) => void server.listen(0, "127.0.0.1", resolve));
  return { server, calls };
}
