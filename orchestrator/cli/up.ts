// `layercast up`: a whole fleet on this machine until Ctrl-C. A second Ctrl-C ends it at once.

import { join, resolve } from "node:path";
import type { Command } from "commander";
import { countOf } from "../contract/count-of.js";
import type { FleetView } from "../contract/reload.js";
import { type LogLevel, readRedisUrl, SETTINGS } from "../host/config.js";
import { FILE_MODE, useFileMode } from "../host/file-mode.js";
import { packageRoot } from "../host/package-root.js";
import { redisPlace } from "../host/redis.js";
import { openRedisNotices } from "../host/redis-notices.js";
import { waitForRedis } from "../host/redis-start.js";
import { redisTrouble } from "../host/redis-trouble.js";
import { tokenOf } from "../host/token.js";
import {
  type CommandContext,
  EXIT,
  expertParallelOption,
  fileModeOption,
  integerFrom,
  logLevelOption,
  parseName,
} from "./command.js";
import { humanLine } from "./local/child-log.js";
import { type FleetWatcher, type LocalFleet, startLocalFleet } from "./local/local-fleet.js";
import type { Terminal } from "./terminal.js";
import { DEFAULT_RUN_DIR } from "./worker.js";
import { refusingWrongUse, requireNativeCore } from "./wrong-use.js";

interface UpOptions {
  replicas: number;
  tp: number;
  ep?: true;
  device: string;
  fleet: string;
  port: number;
  runDir: string;
  sourceRoot?: string[];
  hookHost?: string[];
  fileMode: string;
  logLevel: LogLevel;
}

export function addUp(program: Command, context: CommandContext): void {
  program
    .command("up")
    .description("run Redis (unless REDIS_URL is set), an orchestrator and one worker a rank on this machine")
    .option("--replicas <number>", "replicas of the fleet", integerFrom(1, 1024), 1)
    .option("--tp <number>", "tensor-parallel size: ranks of a replica", integerFrom(1, 1024), 2)
    .addOption(expertParallelOption())
    .option("--device <device>", "what the workers run on: cpu, cuda for a GPU each, or cuda:N for one of them", "cpu")
    .option("--fleet <name>", "the fleet", parseName, "default")
    .option("--port <number>", "of the REST API, on 127.0.0.1; 0: any free one", integerFrom(0, 65_535), 8600)
    .option("--run-dir <directory>", "where Redis and the arenas keep their files", DEFAULT_RUN_DIR)
    .option("--source-root <directory...>", "directories that checkpoints may lie under (default: this directory)")
    .option(SETTINGS.hookHost.flag, `${SETTINGS.hookHost.description} (default: ${SETTINGS.hookHost.env})`)
    .addOption(fileModeOption())
    .addOption(logLevelOption())
    .action(async (options: UpOptions) => {
      const token = await refusingWrongUse(context, () => {
        const given = tokenOf(context.terminal.env);
        requireNativeCore();
        useFileMode(options.fileMode);
        return given;
      });
      await runUp(options, token, context);
    });
}

async function runUp(options: UpOptions, token: string | null, context: CommandContext): Promise<void> {
  const { terminal } = context;
  const log = logTo(terminal, options);
  const stopping = new AbortController();
  let fleet: LocalFleet | null = null;
  const onSignal = () => {
    if (!stopping.signal.aborted) return stopping.abort();
    fleet?.kill();
    process.exit(EXIT.failed);
  };
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, onSignal);
  const watcher: FleetWatcher = {
    line: log.line,
    note: (source, words) => log.note("warn", `${source} ${words}`),
    gaveUp: () => {
      context.exitCode = EXIT.failed;
      stopping.abort();
    },
  };
  const redisUrl = await refusingWrongUse(context, async () => {
    const own = ownRedisUrl(terminal.env);
    if (own !== null) await redisAnswers(own, log, stopping.signal);
    return own;
  });
  if (stopping.signal.aborted) return;
  fleet = await startLocalFleet({
    ...options,
    sourceRoots: (options.sourceRoot ?? ["."]).map((root) => resolve(root)),
    hookHosts: options.hookHost ?? [],
    redisUrl,
    token,
    env: { ...terminal.env, [FILE_MODE.env]: options.fileMode, [SETTINGS.logLevel.env]: options.logLevel },
    watcher,
  });
  await announce(fleet, terminal, log, stopping.signal);
  await aborted(stopping.signal);
  log.note("info", "stopping: workers, orchestrator, Redis");
  await fleet.stop();
  log.note("info", "stopped");
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.removeListener(signal, onSignal);
}

/** null: none is set, and `up` starts one. */
function ownRedisUrl(env: Terminal["env"]): string | null {
  return (env.REDIS_URL ?? "").trim() === "" ? null : readRedisUrl(env);
}

/** Waited for here, so that one process says so and not each of them. */
async function redisAnswers(url: string, log: UpLog, stopping: AbortSignal): Promise<void> {
  const notices = openRedisNotices(redisPlace(url), (level, words) => log.note(level, words));
  const note = (error: unknown) => {
    const trouble = redisTrouble(error);
    if (trouble !== null) notices.note(trouble);
  };
  await waitForRedis(url, note, stopping).catch((error: unknown) => {
    if (!stopping.aborted) throw error;
  });
}

function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  // Only the children's pipes and the fleet's timers keep this process running meanwhile, and there is always one of them.
  return new Promise((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
}

const STILL_WAITING_MS = 10_000;

async function announce(fleet: LocalFleet, terminal: Terminal, log: UpLog, stopping: AbortSignal): Promise<void> {
  const reminder = setInterval(() => log.note("warn", `still waiting for ${fleet.waitsFor()}`), STILL_WAITING_MS);
  try {
    const view = await fleet.whenReady(stopping);
    if (terminal.interactive) for (const line of readyLines(fleet, view)) terminal.out(line);
    else log.note("info", "ready", { url: fleet.client.url, fleet: view.fleet, runDir: fleet.runDir });
  } catch (error) {
    if (!stopping.aborted) throw error;
  } finally {
    clearInterval(reminder);
  }
}

function readyLines(fleet: LocalFleet, view: FleetView): string[] {
  const { url } = fleet.client;
  const devices = [...new Set(view.ranks.map((rank) => rank.device))].join(", ");
  const size = `${view.replicas} x ${countOf(view.tensor_parallel_size, "rank")}${view.expert_parallel ? ", expert parallel," : ""}`;
  return [
    "",
    "Layercast is up.",
    `  API        ${url}  (try it: ${url}/docs)`,
    `  dashboard  ${url}/`,
    `  fleet      ${view.fleet}: ${size} on ${devices}`,
    `  files      ${fleet.runDir}`,
    `  reload     ${OWN_COMMAND} submit --url ${url} --source DIR --recipe fp8-channel`,
    "  stop       Ctrl-C",
    "",
  ];
}

/** Works in any directory, and installs nothing. */
const OWN_COMMAND = `node ${quoted(join(packageRoot(), "dist", "orchestrator", "cli", "main.js"))}`;

function quoted(path: string): string {
  return /^[\w./-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`;
}

interface UpLog {
  line(source: string, text: string): void;
  note(level: "info" | "warn", words: string, fields?: Record<string, unknown>): void;
}

const LEVELS = { info: 30, warn: 40 } as const;

/** On a terminal lines for people; elsewhere the children's JSON lines as they are, and this process's own like them. */
function logTo(terminal: Terminal, options: UpOptions): UpLog {
  const width = `worker ${options.replicas - 1}/${options.tp - 1}`.length;
  const line = (source: string, text: string) =>
    terminal.out(terminal.interactive ? humanLine(source, text, Math.max(width, "orchestrator".length)) : text);
  return {
    line,
    note: (level, words, fields = {}) =>
      line(
        "up",
        JSON.stringify({ level: LEVELS[level], time: new Date().toISOString(), name: "up", ...fields, msg: words }),
      ),
  };
}
