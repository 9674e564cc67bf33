// What the queue costs: as many layers as a real model has, each with next to nothing in it, so that the load phase is the
// jobs and little else.

import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { type Case, equal, type Row } from "./case.js";
import { allCommitted, type BenchFleet, startBenchFleet, type TimedReload } from "./fleet.js";
import { median, sum } from "./statistics.js";
import { type LlamaShape, writeCheckpoint } from "./write-checkpoint.js";

const RANKS = 4;
/** 32 decoder layers, embed_tokens, norm and lm_head. */
const LAYERS = 35;
const WARM_UP = 2;
const RELOADS = 10;

const NARROW: LlamaShape = {
  hidden: 8,
  intermediate: 8,
  heads: 4,
  keyValueHeads: 4,
  headDim: 2,
  layers: 32,
  vocabulary: 64,
};

export const queue: Case = {
  name: "queue",
  says: `${RANKS} ranks x ${LAYERS} layers of next to no work; medians`,
  columns: [
    { key: "jobs", title: "layer jobs", decimals: 0 },
    { key: "load_ms", title: "load ms" },
    { key: "jobs_per_s", title: "jobs/s", decimals: 0 },
    { key: "layers_per_s", title: "layers/s", decimals: 0 },
    { key: "total_ms", title: "total ms" },
    { key: "reloads", title: "reloads", decimals: 0 },
  ],
  async run({ reloads, directory }) {
    const source = join(directory, "narrow");
    await writeCheckpoint(source, NARROW, { files: 1 });
    const fleet = await startBenchFleet({ tp: RANKS, directory, sources: directory });
    try {
      const rows: Row[] = [];
      for (const layersPerJob of [1, "auto"] as const)
        rows.push(await measure(fleet, source, layersPerJob, reloads ?? RELOADS));
      return rows;
    } finally {
      await fleet.stop();
    }
  },
};

async function measure(fleet: BenchFleet, source: string, layersPerJob: 1 | "auto", reloads: number): Promise<Row> {
  const policy = { layers_per_job: layersPerJob };
  const plan = await fleet.client.plan({
    source: { kind: "safetensors", uri: pathToFileURL(source).href },
    fleet: fleet.name,
    policy,
  });
  const jobs = plan.jobs_per_rank * RANKS;
  for (let turn = 0; turn < WARM_UP; turn++) await fleet.reload(source, { policy });
  const timed: TimedReload[] = [];
  for (let turn = 0; turn < reloads; turn++) timed.push(await fleet.reload(source, { policy }));
  const loadMs = median(timed.map(({ reload }) => reload.timing_ms.load ?? Number.NaN));
  return {
    what: `layers_per_job ${layersPerJob}`,
    values: {
      jobs,
      load_ms: loadMs,
      jobs_per_s: (jobs / loadMs) * 1000,
      layers_per_s: ((LAYERS * RANKS) / loadMs) * 1000,
      total_ms: median(timed.map(({ clientMs }) => clientMs)),
      reloads,
    },
    checks: [
      allCommitted(timed),
      equal(
        `${LAYERS * RANKS} layers done`,
        sum(timed.map(({ reload }) => reload.progress.layers_done)),
        LAYERS * RANKS * reloads,
      ),
    ],
  };
}
