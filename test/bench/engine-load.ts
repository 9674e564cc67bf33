// `vllm serve` of an 8B model out of the arena, 32 streams of completions, a commit every two seconds: what a client sees, how long
// the engine stands still, what is lost. Beside it the same load while a stock vLLM loads weights its own ways.

import { execFile, spawn } from "node:child_process";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { vllmArgs } from "../../orchestrator/cli/vllm-args.js";
import { ENGINE_PROGRAMS, startServer, type VllmServer } from "../engine/vllm.js";
import { type Case, type Check, check, type Row, type Setting } from "./case.js";
import { allCommitted, type BenchFleet, startBenchFleet, type TimedReload } from "./fleet.js";
import { median, quantile } from "./statistics.js";

const STREAMS = 32;
const EVERY_MS = 2_000;
const COMMITS = 100;
const BASELINE_S = 10;
/** Load before the first commit and after the last one. */
const MARGIN_S = 4;
const PEER_UPDATES = 4;
const SCHEME = "fp8-channel";
/** A gap belongs to a commit that ended at most so long before it. */
const AFTER_MS = 700;

export const engineLoad: Case = {
  name: "engine-load",
  says: `vllm serve under ${STREAMS} streams (64 tokens in, 256 out), a commit every ${EVERY_MS / 1_000} s, ${SCHEME}; milliseconds`,
  columns: [
    { key: "updates", title: "updates", decimals: 0 },
    { key: "gap_ms", title: "client's gap" },
    { key: "gap_max_ms", title: "longest" },
    { key: "stop_ms", title: "stop p50" },
    { key: "stop_max_ms", title: "max" },
    { key: "still_ms", title: "still p50" },
    { key: "total_ms", title: "update" },
    { key: "tokens_per_s", title: "tokens/s", decimals: 0 },
    { key: "of_baseline", title: "of none", decimals: 3 },
    { key: "start_s", title: "start s" },
    { key: "weights_mib", title: "own MiB", decimals: 0 },
  ],
  async run(setting) {
    const wants = (what: string) => setting.match?.test(what) ?? true;
    const versions = await writeVersions(setting);
    const rows: Row[] = [];
    const fleet = await startBenchFleet({ ...setting, sources: "/" });
    try {
      for (const path of versions) await commit(fleet, path);
      for (const cleared of [true, false])
        if (wants(arenaRow(cleared))) rows.push(await outOfArena(setting, fleet, versions, cleared));
    } finally {
      await fleet.stop();
    }
    if (wants("stock, reload_weights")) rows.push(await stockReload(setting, versions));
    if (setting.device !== "cpu")
      for (const dtype of ["fp8", "bf16"] as const)
        if (wants(ipcRow(dtype))) rows.push(await stockIpc(setting, versions, dtype));
    return rows;
  },
};

const arenaRow = (cleared: boolean) => `arena, cache ${cleared ? "cleared" : "kept"}`;
const ipcRow = (dtype: string) => `stock, CUDA IPC transfer, ${dtype}`;

const isTiny = ({ device }: Setting) => device === "cpu";
const vocabularyOf = (setting: Setting) => (isTiny(setting) ? 512 : 151936);

async function writeVersions(setting: Setting): Promise<[string, string]> {
  const paths: [string, string] = [join(setting.directory, "v1"), join(setting.directory, "v2")];
  const shape = isTiny(setting) ? "qwen3-tiny" : "qwen3-8b";
  setting.say(`writing two checkpoints of ${shape}`);
  for (const [at, path] of paths.entries()) {
    const args = [join(ENGINE_PROGRAMS, "write_model.py"), path, "--seed", String(at + 1), "--shape", shape];
    await promisify(execFile)(setting.python, args);
  }
  return paths;
}

function commit(fleet: BenchFleet, path: string): Promise<TimedReload> {
  return fleet.reload(path, { recipe: { scheme: SCHEME } });
}

/** Of a server that only this machine's clients use. */
function serverArgs(setting: Setting): string[] {
  const args = ["--max-model-len", "1024", "--no-enable-prefix-caching", "--dtype", "bfloat16"];
  if (isTiny(setting)) return [...args, "--enforce-eager"];
  return [...args, "--kv-cache-memory-bytes", String(16 * 2 ** 30), "-cc", '{"mode":0,"cudagraph_mode":"FULL"}'];
}

const serverEnv = (setting: Setting): NodeJS.ProcessEnv =>
  isTiny(setting)
    ? { VLLM_CPU_KVCACHE_SPACE: "1", VLLM_SERVER_DEV_MODE: "1" }
    : { VLLM_SERVER_DEV_MODE: "1", VLLM_USE_DEEP_GEMM: "0" };

async function outOfArena(
  setting: Setting,
  fleet: BenchFleet,
  versions: readonly [string, string],
  clearCache: boolean,
): Promise<Row> {
  const what = arenaRow(clearCache);
  setting.say(what);
  const seen = await fleet.client.fleet(fleet.name);
  const runDir = join(setting.directory, "run");
  const { args } = vllmArgs({
    fleet: seen,
    recipe: SCHEME,
    runDir,
    replica: 0,
    device: kindOf(setting),
    liveBytes: null,
  });
  const extra = JSON.stringify({ run_dir: runDir, fleet: fleet.name, clear_cache: clearCache });
  const server = await startServer({
    ...setting,
    model: versions[0],
    args: [...serverArgs(setting), ...utilization(setting, 0.05), ...args.with(3, extra)],
    env: serverEnv(setting),
    log: join(setting.directory, `arena-${clearCache}.log`),
  });
  try {
    const weights = await weightsMib(join(setting.directory, `arena-${clearCache}.log`));
    const baseline = await loaded(setting, server, BASELINE_S, async () => {});
    const count = setting.reloads ?? COMMITS;
    const stops: { stop_ms: number; still_ms: number }[] = [];
    const timed: (TimedReload & Window)[] = [];
    const seconds = (count * EVERY_MS) / 1_000 + 2 * MARGIN_S;
    const load = await loaded(setting, server, seconds, async () => {
      await delay(MARGIN_S * 1_000);
      for (let round = 0; round < count; round++) {
        const next = delay(EVERY_MS);
        const from = Date.now();
        const one = await commit(fleet, versions[round % 2] ?? "");
        timed.push({ ...one, from, to: Date.now() });
        const { attached_engines } = await fleet.client.fleet(fleet.name);
        const stop = attached_engines[0]?.last_stop;
        if (stop) stops.push(stop);
        await next;
      }
    });
    return {
      what,
      values: {
        ...gapsOf(load, timed),
        updates: timed.length,
        stop_ms: median(stops.map(({ stop_ms }) => stop_ms)),
        stop_max_ms: Math.max(...stops.map(({ stop_ms }) => stop_ms)),
        still_ms: median(stops.map(({ still_ms }) => still_ms)),
        total_ms: median(timed.map(({ clientMs }) => clientMs)),
        tokens_per_s: load.tokens / load.seconds,
        of_baseline: load.tokens / load.seconds / (baseline.tokens / baseline.seconds),
        start_s: server.startMs / 1_000,
        weights_mib: weights,
      },
      checks: [
        noErrors(load),
        allCommitted(timed),
        check(
          "each commit stopped the engine",
          stops.length === timed.length ? [] : [`${stops.length} of ${timed.length}`],
        ),
      ],
    };
  } finally {
    await server.stop();
  }
}

/** Paused, files in the page cache, weights by vLLM's own loader. */
async function stockReload(setting: Setting, versions: readonly [string, string]): Promise<Row> {
  return stock(setting, versions, {
    what: "stock, reload_weights",
    args: isTiny(setting) ? [] : ["--quantization", "fp8_per_channel"],
    update: async (server, round) => {
      const weights_path = versions[round % 2];
      await server.post("/collective_rpc", { method: "reload_weights", kwargs: { weights_path } });
    },
  });
}

/** From a trainer's tensors on the same GPU. */
async function stockIpc(setting: Setting, versions: readonly [string, string], dtype: "fp8" | "bf16"): Promise<Row> {
  const args = [
    "--weight-transfer-config",
    '{"backend":"ipc"}',
    ...(dtype === "fp8" ? ["--quantization", "fp8_per_channel"] : []),
  ];
  let trainer: Trainer | null = null;
  try {
    return await stock(setting, versions, {
      what: ipcRow(dtype),
      args,
      env: { VLLM_ALLOW_INSECURE_SERIALIZATION: "1" },
      pauses: false,
      update: async (server) => {
        trainer ??= await startTrainer(setting, server.url, versions[1]);
        await trainer.send();
      },
      before: async (server) => {
        trainer ??= await startTrainer(setting, server.url, versions[1]);
      },
    });
  } finally {
    (trainer as Trainer | null)?.stop();
  }
}

interface Trainer {
  send(): Promise<void>;
  stop(): void;
}

async function startTrainer(setting: Setting, url: string, checkpoint: string): Promise<Trainer> {
  const child = spawn(setting.python, [join(ENGINE_PROGRAMS, "ipc_trainer.py"), url, checkpoint], {
    env: { ...process.env, ...serverEnv(setting), VLLM_ALLOW_INSECURE_SERIALIZATION: "1" },
    stdio: ["pipe", "pipe", "inherit"],
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const next = async () => {
    const { value, done } = await lines.next();
    if (done || value !== "done") throw new Error(`the trainer said ${value ?? "nothing"}`);
  };
  await next();
  return {
    async send() {
      child.stdin.write("\n");
      await next();
    },
    stop: () => child.kill("SIGKILL"),
  };
}

interface StockCase {
  what: string;
  args: string[];
  env?: NodeJS.ProcessEnv;
  /** false: `update` does it itself. */
  pauses?: boolean;
  before?(server: VllmServer): Promise<void>;
  update(server: VllmServer, round: number): Promise<void>;
}

async function stock(setting: Setting, versions: readonly [string, string], one: StockCase): Promise<Row> {
  setting.say(one.what);
  const log = join(setting.directory, `${one.what.replaceAll(/[ ,]+/g, "-")}.log`);
  const server = await startServer({
    ...setting,
    model: versions[0],
    args: [...serverArgs(setting), ...utilization(setting, 0.5), ...one.args],
    env: { ...serverEnv(setting), ...one.env },
    log,
  });
  try {
    const weights = await weightsMib(log);
    await one.before?.(server);
    const updates: Window[] = [];
    const seconds = PEER_UPDATES * 5 + 2 * MARGIN_S;
    const load = await loaded(setting, server, seconds, async () => {
      await delay(MARGIN_S * 1_000);
      for (let round = 0; round < PEER_UPDATES; round++) {
        const from = Date.now();
        if (one.pauses !== false) await server.post("/pause?mode=keep&clear_cache=true");
        await one.update(server, round + 1);
        if (one.pauses !== false) await server.post("/resume");
        updates.push({ from, to: Date.now() });
        await delay(EVERY_MS);
      }
    });
    return {
      what: one.what,
      values: {
        ...gapsOf(load, updates),
        updates: updates.length,
        stop_ms: median(updates.map(({ from, to }) => to - from)),
        stop_max_ms: Math.max(...updates.map(({ from, to }) => to - from)),
        still_ms: null,
        total_ms: median(updates.map(({ from, to }) => to - from)),
        tokens_per_s: load.tokens / load.seconds,
        of_baseline: null,
        start_s: server.startMs / 1_000,
        weights_mib: weights,
      },
      checks: [noErrors(load)],
    };
  } finally {
    await server.stop();
  }
}

interface Window {
  /** Milliseconds since the epoch. */
  from: number;
  to: number;
}

interface Load {
  requests: number;
  tokens: number;
  seconds: number;
  errors: string[];
  gaps: [stream: number, endS: number, gapS: number][];
}

/** Streams for so long, while `during` runs. */
async function loaded(
  setting: Setting,
  { url }: VllmServer,
  seconds: number,
  during: () => Promise<void>,
): Promise<Load> {
  const out = join(setting.directory, "gaps.json");
  const args = [
    join(ENGINE_PROGRAMS, "load_client.py"),
    url,
    "m",
    "--streams",
    String(STREAMS),
    "--seconds",
    String(seconds),
  ];
  args.push("--vocabulary", String(vocabularyOf(setting)), "--out", out);
  await Promise.all([promisify(execFile)(setting.python, args), during()]);
  return JSON.parse(await readFile(out, "utf8")) as Load;
}

/** At each update the longest gap of every stream; of those the median. Over the updates: median, and longest. */
function gapsOf({ gaps }: Load, windows: readonly Window[]): { gap_ms: number; gap_max_ms: number } {
  const ofUpdates = windows.map(({ from, to }) => {
    const longest = new Array<number>(STREAMS).fill(0);
    for (const [stream, endS, gapS] of gaps) {
      if (endS * 1e3 < from || (endS - gapS) * 1e3 > to || endS * 1e3 > to + AFTER_MS) continue;
      longest[stream] = Math.max(longest[stream] ?? 0, gapS * 1e3);
    }
    return median(longest);
  });
  return { gap_ms: median(ofUpdates), gap_max_ms: quantile(ofUpdates, 1) };
}

function noErrors({ errors, requests }: Load): Check {
  return check("no request failed", requests === 0 ? ["no request ended", ...errors] : errors);
}

/** What vLLM itself says that its weights take; null: it does not. */
async function weightsMib(log: string): Promise<number | null> {
  const said = /[Mm]odel loading took ([\d.]+) GiB/.exec(await readFile(log, "utf8"));
  return said === null ? null : Number(said[1]) * 1_024;
}

function utilization(setting: Setting, share: number): string[] {
  return isTiny(setting) ? [] : ["--gpu-memory-utilization", String(share)];
}

const kindOf = ({ device }: Setting) => (device === "cpu" ? "cpu" : "cuda");
