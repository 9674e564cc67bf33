// What moving the bytes costs: a checkpoint of 1 GiB through read, place, quantize and write, beside threads that copy as many
// bytes and do nothing else.

import { mkdir } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { compareTensors, type Golden, readTensorDigests } from "../../orchestrator/cli/compare-tensors.js";
import type { PlanView, RankProgress } from "../../orchestrator/contract/reload.js";
import { type Case, type Check, check, type Row } from "./case.js";
import { allCommitted, type BenchFleet, exportDigests, startBenchFleet, type TimedReload } from "./fleet.js";
import { openMemcpy } from "./memcpy.js";
import { spotCheck } from "./spot-check.js";
import { median, sum } from "./statistics.js";
import { type LlamaShape, writeCheckpoint } from "./write-checkpoint.js";

const RANKS = 2;
const RELOADS = 9;
const RECIPE = { scheme: "fp8-channel" } as const;
const TARGET_OF_MEMCPY = 0.3;

/** 2^30 bytes of matrices, and the norms. */
export const ONE_GIB: LlamaShape = {
  hidden: 2048,
  intermediate: 5632,
  heads: 16,
  keyValueHeads: 4,
  headDim: 128,
  layers: 9,
  vocabulary: 32000,
};

export const load: Case = {
  name: "load",
  says: `1 GiB BF16, ${RANKS} CPU ranks, fp8-channel; the load phase beside a parallel memcpy; GB = 10^9`,
  columns: [
    { key: "load_ms", title: "load ms" },
    { key: "read_gb", title: "GB read", decimals: 3 },
    { key: "written_gb", title: "GB written", decimals: 3 },
    { key: "gb_per_s", title: "GB/s", decimals: 2 },
    { key: "of_memcpy", title: "of memcpy", decimals: 2 },
    { key: "target_of_memcpy", title: "target", decimals: 1 },
    { key: "peak_mib", title: "peak MiB", decimals: 0 },
    { key: "planned_peak_mib", title: "planned", decimals: 0 },
    { key: "rounds", title: "rounds", decimals: 0 },
  ],
  async run({ reloads, directory, say }) {
    const sources = join(directory, "sources");
    const checkpoint = join(sources, "one-gib");
    await mkdir(sources);
    say("writing a checkpoint of 1 GiB");
    await writeCheckpoint(checkpoint, ONE_GIB, { files: 4 });
    const fleet = await startBenchFleet({ tp: RANKS, directory, sources });
    try {
      return await measure(fleet, checkpoint, reloads ?? RELOADS, say);
    } finally {
      await fleet.stop();
    }
  },
};

async function measure(
  fleet: BenchFleet,
  checkpoint: string,
  reloads: number,
  say: (line: string) => void,
): Promise<Row[]> {
  const source = { kind: "safetensors", uri: pathToFileURL(checkpoint).href } as const;
  const plan = await fleet.client.plan({ source, fleet: fleet.name, recipe: RECIPE });
  say("the first load, which lays the arena out");
  const first = await fleet.reload(checkpoint, { recipe: RECIPE });
  const { spots, digests } = await inspect(fleet, checkpoint);
  say(`${reloads} reloads, each beside a copy of as many bytes`);
  const bytes = movedBytes(first);
  const again = await reloadBesideMemcpy(fleet, checkpoint, reloads, bytes);
  const timed = again.map(({ reload }) => reload);
  const same = check("exports as after the first load", differencesOf(await exportDigests(fleet, RANKS), digests));
  return [
    rowOf("first load", [first], plan, null, [allCommitted([first]), ...spots]),
    rowOf("reload", timed, plan, again.map(shareOfMemcpy), [allCommitted(timed), allBytes(timed, plan), same]),
    memcpyRow(
      bytes,
      again.map(({ memcpyMs }) => memcpyMs),
    ),
  ];
}

interface Pair {
  reload: TimedReload;
  memcpyMs: number;
}

/** By turns, so that what else the machine does meets both. */
async function reloadBesideMemcpy(
  fleet: BenchFleet,
  checkpoint: string,
  rounds: number,
  bytes: number,
): Promise<Pair[]> {
  const memcpy = await openMemcpy(bytes / 2, availableParallelism());
  try {
    const pairs: Pair[] = [];
    for (let round = 0; round < rounds; round++) {
      const reload = await fleet.reload(checkpoint, { recipe: RECIPE });
      pairs.push({ reload, memcpyMs: await memcpy.round() });
    }
    return pairs;
  } finally {
    await memcpy.close();
  }
}

function shareOfMemcpy({ reload, memcpyMs }: Pair): number {
  return memcpyMs / loadMsOf(reload);
}

async function inspect(fleet: BenchFleet, checkpoint: string): Promise<{ spots: Check[]; digests: Golden[] }> {
  const spots: Check[] = [];
  const digests: Golden[] = [];
  for (let rank = 0; rank < RANKS; rank++) {
    await fleet.withExport(rank, async (path) => {
      spots.push(await spotCheck(checkpoint, ONE_GIB, RANKS, rank, path));
      digests.push(await readTensorDigests(path));
    });
  }
  return { spots, digests };
}

function differencesOf(found: readonly Golden[], expected: readonly Golden[]): string[] {
  return found.flatMap((one, rank) => compareTensors(one, expected[rank] ?? {}).differences);
}

function rowOf(
  what: string,
  timed: readonly TimedReload[],
  plan: PlanView,
  shares: number[] | null,
  checks: Check[],
): Row {
  const loadMs = median(timed.map(loadMsOf));
  const rates = timed.map((one) => movedBytes(one) / loadMsOf(one));
  const ranks = timed.flatMap(({ reload }) => reload.ranks);
  const values = {
    load_ms: loadMs,
    read_gb: sum(ranks.map(({ bytes_read }) => bytes_read)) / timed.length / 1e9,
    written_gb: sum(ranks.map(({ bytes_written }) => bytes_written)) / timed.length / 1e9,
    gb_per_s: median(rates) / 1e6,
    of_memcpy: shares === null ? null : median(shares),
    target_of_memcpy: shares === null ? null : TARGET_OF_MEMCPY,
    peak_mib: Math.max(...ranks.map(({ peak_memory_bytes }) => peak_memory_bytes)) / 2 ** 20,
    planned_peak_mib: Math.max(...plan.ranks.map(({ peak_memory_bytes }) => peak_memory_bytes)) / 2 ** 20,
    rounds: timed.length,
    ...threadTimes(ranks, timed.length),
  };
  return { what, values, checks };
}

/** Only in the JSON: where the core's threads spent their time, all threads of all ranks together. */
function threadTimes(ranks: RankProgress[], reloads: number): Record<string, number> {
  const mean = (key: "read_ms" | "place_ms" | "quantize_ms" | "write_ms") =>
    sum(ranks.map((one) => one[key])) / reloads;
  return {
    read_thread_ms: mean("read_ms"),
    place_thread_ms: mean("place_ms"),
    quantize_thread_ms: mean("quantize_ms"),
    write_thread_ms: mean("write_ms"),
  };
}

function memcpyRow(bytes: number, tookMs: number[]): Row {
  const ms = median(tookMs);
  const half = bytes / 2 / 1e9;
  const values = { load_ms: ms, read_gb: half, written_gb: half, gb_per_s: bytes / ms / 1e6, rounds: tookMs.length };
  return { what: `memcpy, ${availableParallelism()} threads`, values, checks: [] };
}

function loadMsOf({ reload }: TimedReload): number {
  return reload.timing_ms.load ?? Number.NaN;
}

function movedBytes({ reload }: TimedReload): number {
  return sum(reload.ranks.map(({ bytes_read, bytes_written }) => bytes_read + bytes_written));
}

/** So that a reload that skipped its work is not taken for a fast one. More is possible: short gaps are read over. */
function allBytes(timed: readonly TimedReload[], plan: PlanView): Check {
  const planned = sum(plan.ranks.map(({ read_bytes }) => read_bytes));
  const least = Math.min(...timed.map(({ reload }) => sum(reload.ranks.map(({ bytes_read }) => bytes_read))));
  return check("no planned byte unread", least >= planned ? [] : [`${least} bytes read, ${planned} planned`]);
}
