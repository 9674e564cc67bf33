// `layercast demo`: the main job on real input, start to end. A fleet of two workers takes the shipped checkpoint's three versions, goes back to the second, and every kernel tensor that the ranks then hold is compared with its known digest.

import { appendFileSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import type { Command } from "commander";
import { countOf } from "../contract/count-of.js";
import { LayercastError } from "../contract/errors.js";
import type { ReloadView } from "../contract/reload.js";
import { packageRoot } from "../host/package-root.js";
import { type CommandContext, EXIT } from "./command.js";
import { type Comparison, compareTensors, type Golden, readTensorDigests } from "./compare-tensors.js";
import { demoEngine } from "./demo-engine.js";
import { fetchExport } from "./export.js";
import { followReload, screenOf } from "./follow.js";
import { fleetLines, phaseTable, reloadSentence } from "./format.js";
import { type LocalFleet, startLocalFleet } from "./local/local-fleet.js";
import type { Terminal } from "./terminal.js";
import { refusingWrongUse, requireNativeCore } from "./wrong-use.js";

/** In a Redis that others may use too, a name that no fleet of theirs has. */
const FLEET = `demo-${process.pid}`;
const MODEL = "tiny-qwen3";
const SCHEME = "fp8-channel";
const WEIGHT_VERSIONS = ["v1", "v2", "v3"];
const BACK_TO = "v2";
const RANKS = [0, 1];
const READY_DEADLINE_MS = 60_000;

export function addDemo(program: Command, context: CommandContext): void {
  program
    .command("demo")
    .description("start a fleet, reload the shipped checkpoint three times, roll back, check every byte, stop")
    .option("--device <device>", "what the workers run on: cpu, or cuda:N for a GPU that they share", "cpu")
    .option("--engine", "a second act: a real vLLM computes out of the arena, each answer is checked")
    .action(async ({ device, engine }: { device: string; engine?: true }) => {
      await refusingWrongUse(context, requireNativeCore);
      await runDemo(context, device);
      if (engine === undefined || context.exitCode !== EXIT.ok) return;
      if (!(await demoEngine(context.terminal, device, SCHEME))) context.exitCode = EXIT.failed;
    });
}

async function runDemo(context: CommandContext, device: string): Promise<void> {
  const { terminal } = context;
  const runDir = await mkdtemp(join(tmpdir(), "layercast-demo-"));
  const logFile = join(runDir, "up.log");
  const stopping = new AbortController();
  const onSignal = () => stopping.abort();
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, onSignal);
  let fleet: LocalFleet | null = null;
  let right = false;
  try {
    fleet = await startDemoFleet(terminal, device, runDir, logFile, stopping);
    right = await reloadAndCheck(fleet, terminal, runDir, stopping.signal);
  } catch (error) {
    terminal.err(await lastLines(logFile));
    throw error;
  } finally {
    await fleet?.stop();
    terminal.out("Everything is stopped.");
    await rm(runDir, { recursive: true, force: true });
    for (const signal of ["SIGINT", "SIGTERM"] as const) process.removeListener(signal, onSignal);
  }
  if (!right) context.exitCode = EXIT.failed;
}

async function startDemoFleet(
  terminal: Terminal,
  device: string,
  runDir: string,
  logFile: string,
  stopping: AbortController,
): Promise<LocalFleet> {
  terminal.out(`Starting Redis, an orchestrator and ${countOf(RANKS.length, "worker")} on ${device} in ${runDir} ...`);
  const write = (source: string, text: string) => appendFileSync(logFile, `${source}: ${text}\n`);
  const fleet = await startLocalFleet({
    fleet: FLEET,
    replicas: 1,
    tp: RANKS.length,
    device,
    port: 0,
    runDir,
    sourceRoots: [fixturePath()],
    redisUrl: terminal.env.REDIS_URL === undefined || terminal.env.REDIS_URL === "" ? null : terminal.env.REDIS_URL,
    token: null,
    env: { ...terminal.env, LAYERCAST_TOKEN: "", LAYERCAST_TOKEN_FILE: "", LAYERCAST_HOLD_MS: "0" },
    watcher: { line: write, note: write, gaveUp: () => stopping.abort() },
  });
  const deadline = AbortSignal.timeout(READY_DEADLINE_MS);
  try {
    await fleet.whenReady(AbortSignal.any([stopping.signal, deadline]));
  } catch (error) {
    await fleet.stop();
    if (!deadline.aborted) throw error;
    const waited = `The fleet was not ready after ${READY_DEADLINE_MS} ms: it waited for ${fleet.waitsFor()}`;
    throw new LayercastError("deadline_exceeded", `${waited}. What the processes wrote stands above`);
  }
  terminal.out(`Ready: ${fleet.client.url}\n`);
  return fleet;
}

const fixturePath = (...parts: string[]) => join(packageRoot(), "test", "fixtures", ...parts);

/** True when every reload committed and every tensor was right. */
async function reloadAndCheck(
  fleet: LocalFleet,
  terminal: Terminal,
  runDir: string,
  signal: AbortSignal,
): Promise<boolean> {
  const { client } = fleet;
  const reloads: ReloadView[] = [];
  const follow = async (submitted: ReloadView) => {
    const ended = await followReload(client, submitted, screenOf(terminal), { signal });
    terminal.out(`${reloadSentence(ended)}\n`);
    reloads.push(ended);
    return ended.state === "committed";
  };
  for (const weightVersion of WEIGHT_VERSIONS) {
    const uri = pathToFileURL(fixturePath("checkpoints", MODEL, weightVersion)).href;
    const source = { kind: "safetensors", uri } as const;
    const body = { fleet: FLEET, weight_version: weightVersion, source, recipe: { scheme: SCHEME } };
    if (!(await follow(await client.submit(body)))) return false;
  }
  if (!(await follow(await client.rollback(FLEET, { to_weight_version: BACK_TO })))) return false;
  for (const line of [...fleetLines(await client.fleet(FLEET)), "", ...phaseTable(reloads), ""]) terminal.out(line);
  return checkRanks(fleet, terminal, runDir);
}

async function checkRanks(fleet: LocalFleet, terminal: Terminal, runDir: string): Promise<boolean> {
  const text = await readFile(fixturePath("goldens", `${MODEL}-${BACK_TO}.json`), "utf8");
  const goldens = JSON.parse(text) as Record<string, Golden>;
  let right = true;
  for (const rank of RANKS) {
    const key = `tp${RANKS.length}/rank${rank}/${SCHEME}`;
    const exported = await fleet.client.exportRank(FLEET, 0, rank);
    const file = await fetchExport(fleet.client, FLEET, exported, join(runDir, `rank-${rank}.safetensors`));
    const result = compareTensors(await readTensorDigests(file), goldens[key] ?? {});
    for (const line of comparisonLines(`rank ${rank} at ${exported.weight_version}`, result)) terminal.out(line);
    right &&= result.matched > 0 && result.differences.length === 0;
  }
  return right;
}

function comparisonLines(what: string, result: Comparison): string[] {
  const total = result.matched + result.differences.length;
  return [
    `${what}: ${result.matched} of ${countOf(total, "kernel tensor")} match their known digest (name, dtype, shape, sha256)`,
    ...result.differences.map((difference) => `  ${difference}`),
  ];
}

async function lastLines(logFile: string): Promise<string> {
  const log = await readFile(logFile, "utf8").catch(() => "");
  return log.trimEnd().split("\n").slice(-20).join("\n");
}
