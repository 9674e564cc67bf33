// An 8B-shaped checkpoint onto GPUs: from files that no reload has read before, and from the same files again and again, which
// the GPU then reads by itself. Beside it the digests that the CPU backend makes of the same files, and a peer if one is given.

import { execFile } from "node:child_process";
import { mkdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import type { Scheme } from "../../orchestrator/contract/recipe.js";
import type { RankProgress } from "../../orchestrator/contract/reload.js";
import { type Case, type Check, check, type Row, type Setting } from "./case.js";
import { allCommitted, type BenchFleet, startBenchFleet, type TimedReload } from "./fleet.js";
import { median, sum } from "./statistics.js";
import { checkpointBytes, type LlamaShape, linkCheckpoint, writeCheckpoint } from "./write-checkpoint.js";

/** As Llama 3.1 8B: 16.06 GB of BF16. */
const EIGHT_B: LlamaShape = {
  hidden: 4096,
  intermediate: 14336,
  heads: 32,
  keyValueHeads: 8,
  headDim: 128,
  layers: 32,
  vocabulary: 128256,
};
const FILES = 4;
const WARM_UP = 6;
const ROUNDS = 5;
const TARGETS_MS = { new: 450, again: 340 };
/** A commit's files are pinned after the second in a row that came from them, while nobody waits. */
const UNTIL_PINNED = 12;
const GROWTH = [1, 8, 32, 80];

const COLUMNS: Case["columns"] = [
  { key: "total_ms", title: "total ms" },
  { key: "target_ms", title: "target", decimals: 0 },
  { key: "load_ms", title: "load ms" },
  { key: "gb_per_s", title: "GB/s in" },
  { key: "peer_ms", title: "peer ms", decimals: 0 },
  { key: "times_peer", title: "x peer" },
  { key: "stopped_ms", title: "stopped ms" },
  { key: "cpu_s", title: "CPU s" },
  { key: "pinned_mib", title: "pinned MiB", decimals: 0 },
  { key: "rounds", title: "rounds", decimals: 0 },
];

export const device: Case = {
  name: "device",
  says: "8B-shaped BF16 checkpoint, submit to committed by the client's clock, staged; medians; GB = 10^9 of the checkpoint",
  columns: COLUMNS,
  async run(setting) {
    const sources = join(setting.directory, "sources");
    await mkdir(sources);
    const pair = [join(sources, "a"), join(sources, "b")] as const;
    setting.say("writing two checkpoints");
    for (const [seed, path] of pair.entries()) await writeCheckpoint(path, EIGHT_B, { files: FILES, seed });
    const peerMs = setting.peer === null ? new Map<string, number>() : await runPeer(setting.peer, pair[0]);
    const fleet = await startBenchFleet({ ...setting, sources });
    const rows: Row[] = [];
    const digests = new Map<Scheme, string[][]>();
    try {
      for (const scheme of setting.recipes) {
        setting.say(scheme);
        const measured = await measure(fleet, pair, scheme, setting, peerMs.get(scheme) ?? null);
        digests.set(scheme, measured.digests);
        rows.push(...measured.rows);
      }
    } finally {
      await fleet.stop();
    }
    return withDigestChecks(rows, digests, await cpuDigests(setting, sources, pair));
  },
};

export const growth: Case = {
  name: "growth",
  says: "the same layers, fp8-channel, files that no reload has read before: how the time grows with their number",
  columns: COLUMNS,
  async run(setting) {
    const sources = join(setting.directory, "sources");
    await mkdir(sources);
    const most = { ...EIGHT_B, layers: Math.max(...GROWTH) };
    setting.say(`writing a checkpoint of ${most.layers} layers`);
    await writeCheckpoint(join(sources, "all"), most, { files: 2 * FILES });
    const fleet = await startBenchFleet({ ...setting, sources });
    const rows: Row[] = [];
    try {
      for (const layers of GROWTH) {
        const shape = { ...EIGHT_B, layers };
        // Each directory is used once: files that come twice in a row would be pinned meanwhile.
        const paths = ["laid-out", "staged", "timed"].map((use) => join(sources, `${layers}-${use}`));
        for (const path of paths) await linkCheckpoint(join(sources, "all"), path, shape);
        const [laidOut = "", staged = "", measured = ""] = paths;
        const body = { recipe: { scheme: "fp8-channel" }, install: { allow_new_layout: true } } as const;
        for (const path of [laidOut, staged]) await fleet.reload(path, body);
        const timed = [await timedReload(fleet, measured, body)];
        rows.push(rowOf(`${layers} layers`, timed, checkpointBytes(shape), { targetMs: null, peerMs: null }));
      }
    } finally {
      await fleet.stop();
    }
    return rows;
  },
};

interface Timed extends TimedReload {
  cpuS: number;
}

async function measure(
  fleet: BenchFleet,
  [a, b]: readonly [string, string],
  scheme: Scheme,
  { reloads }: Setting,
  peerMs: number | null,
): Promise<{ rows: Row[]; digests: string[][] }> {
  const body = { recipe: { scheme }, install: { allow_new_layout: true } };
  const rounds = reloads ?? ROUNDS;
  // Lays the arena out, makes staging, gives up what was pinned before, and has Node compile what it runs.
  for (let turn = 0; turn < WARM_UP; turn++) await fleet.reload(turn % 2 === 0 ? a : b, body);
  const digests = [await pageDigests(fleet)];
  const fresh: Timed[] = [];
  // By turns: no two in a row come from the same files.
  for (let round = 0; round < rounds; round++) fresh.push(await timedReload(fleet, round % 2 === 0 ? a : b, body));
  for (let round = 0; round < UNTIL_PINNED; round++) {
    const { reload } = await fleet.reload(a, body);
    if (reload.ranks.every(({ pinned_bytes }) => pinned_bytes >= checkpointBytes(EIGHT_B))) break;
  }
  const again: Timed[] = [];
  for (let round = 0; round < rounds; round++) again.push(await timedReload(fleet, a, body));
  digests.unshift(await pageDigests(fleet));
  const bytes = checkpointBytes(EIGHT_B);
  const isTarget = scheme === "fp8-channel";
  const targetMs = (which: keyof typeof TARGETS_MS) => (isTarget ? TARGETS_MS[which] : null);
  return {
    rows: [
      rowOf(`${scheme}, new files`, fresh, bytes, { targetMs: targetMs("new"), peerMs }),
      rowOf(`${scheme}, the same files`, again, bytes, { targetMs: targetMs("again"), peerMs }),
    ],
    digests,
  };
}

type Body = Parameters<BenchFleet["reload"]>[1];

async function timedReload(fleet: BenchFleet, source: string, body: Body): Promise<Timed> {
  const before = await cpuSeconds(fleet);
  const timed = await fleet.reload(source, body);
  return { ...timed, cpuS: (await cpuSeconds(fleet)) - before };
}

function rowOf(
  what: string,
  timed: readonly Timed[],
  bytes: number,
  { targetMs, peerMs }: { targetMs: number | null; peerMs: number | null },
): Row {
  const totalMs = median(timed.map(({ clientMs }) => clientMs));
  const loadMs = median(timed.map(({ reload }) => reload.timing_ms.load ?? Number.NaN));
  const ranks = timed.flatMap(({ reload }) => reload.ranks);
  const values = {
    total_ms: totalMs,
    target_ms: targetMs,
    load_ms: loadMs,
    gb_per_s: bytes / totalMs / 1e6,
    peer_ms: peerMs,
    times_peer: peerMs === null ? null : peerMs / totalMs,
    stopped_ms: median(timed.map(({ reload }) => reload.engine_stopped_ms ?? Number.NaN)),
    cpu_s: median(timed.map(({ cpuS }) => cpuS)),
    pinned_mib: Math.max(...ranks.map(({ pinned_bytes }) => pinned_bytes)) / 2 ** 20,
    rounds: timed.length,
    ...stages(ranks, timed.length),
    ...phases(timed),
  };
  return { what, values, checks: [allCommitted(timed)] };
}

/** Only in the JSON. */
function stages(ranks: RankProgress[], reloads: number): Record<string, number> {
  const mean = (key: "read_ms" | "quantize_ms" | "finalize_ms" | "swap_ms") =>
    sum(ranks.map((one) => one[key])) / reloads;
  return {
    read_thread_ms: mean("read_ms"),
    quantize_ms: mean("quantize_ms"),
    finalize_ms: mean("finalize_ms"),
    swap_ms: mean("swap_ms"),
  };
}

/** Only in the JSON too: by Redis's clock, whole milliseconds before the median. */
function phases(timed: readonly Timed[]): Record<string, number> {
  const of = (phase: "queued" | "plan" | "finalize" | "commit") =>
    median(timed.map(({ reload }) => reload.timing_ms[phase] ?? Number.NaN));
  return { queued_ms: of("queued"), plan_ms: of("plan"), finalize_phase_ms: of("finalize"), commit_ms: of("commit") };
}

/** User and system time of all workers. */
async function cpuSeconds({ client, name }: BenchFleet): Promise<number> {
  const { ranks } = await client.fleet(name);
  const ticks = await Promise.all(
    ranks.map(async ({ pid }) => {
      const stat = await readFile(`/proc/${pid}/stat`, "utf8");
      const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
      return Number(fields[11]) + Number(fields[12]);
    }),
  );
  return sum(ticks) / TICKS_A_SECOND;
}

/** USER_HZ, the same on every Linux that Node runs on. */
const TICKS_A_SECOND = 100;
const DIGEST_AT = 336;

/** Of the live bytes, from each rank's control page (docs/arena-format.md). */
async function pageDigests({ client, name }: BenchFleet): Promise<string[]> {
  const { ranks } = await client.fleet(name);
  const pages = ranks.map(({ control_path }) => readFile(control_path ?? ""));
  return (await Promise.all(pages)).map((page) => page.readBigUInt64LE(DIGEST_AT).toString(16));
}

/** What the CPU backend makes of both checkpoints, by scheme; a fleet each, so that no two arenas lie there at once. */
async function cpuDigests(
  setting: Setting,
  sources: string,
  pair: readonly [string, string],
): Promise<Map<Scheme, string[][]>> {
  const found = new Map<Scheme, string[][]>();
  for (const scheme of setting.recipes) {
    setting.say(`${scheme} by the CPU backend`);
    const directory = join(setting.directory, `cpu-${scheme}`);
    const fleet = await startBenchFleet({ ...setting, directory, sources, device: "cpu" });
    const digests: string[][] = [];
    try {
      for (const path of pair) {
        await fleet.reload(path, { recipe: { scheme }, install: { mode: "in_place" } });
        digests.push(await pageDigests(fleet));
      }
    } finally {
      await fleet.stop();
      await rm(directory, { recursive: true });
    }
    found.set(scheme, digests);
  }
  return found;
}

function withDigestChecks(rows: Row[], found: Map<Scheme, string[][]>, expected: Map<Scheme, string[][]>): Row[] {
  return rows.map((row) => {
    const scheme = [...found.keys()].find((one) => row.what.startsWith(one));
    const digests = scheme === undefined ? [] : [found.get(scheme), expected.get(scheme)];
    const [here = "", cpu = ""] = digests.map((one) => JSON.stringify(one));
    const same: Check = check("digests as of the CPU backend", here === cpu ? [] : [`${here}, the CPU's ${cpu}`]);
    return { ...row, checks: [...row.checks, same] };
  });
}

const PEER_NAMES: Readonly<Record<string, Scheme>> = {
  bf16: "none",
  "fp8-tensor": "fp8-tensor",
  "fp8-channel": "fp8-channel",
  "fp8-block128": "fp8-block",
};

/** A program that is given `--dir` and prints, a recipe a line, its name and `median N ms`. */
async function runPeer(command: string, checkpoint: string): Promise<Map<string, number>> {
  const [program = "", ...args] = command.split(" ");
  const { stdout } = await promisify(execFile)(program, [...args, "--dir", checkpoint]);
  const times = new Map<string, number>();
  for (const [, name = "", ms] of stdout.matchAll(/(\S+)\s+median\s+([\d.]+) ms/g)) {
    times.set(PEER_NAMES[name] ?? name, Number(ms));
  }
  return times;
}
