// A whole Layercast for a test: real Redis, orchestrator and workers as processes in a directory of their own, poisoned
// staging, named faults, and what a rank holds read back through `layercast export`.

import { randomUUID } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import { expect } from "vitest";
import { type Golden, readTensorDigests } from "../../orchestrator/cli/compare-tensors.js";
import type { Client } from "../../orchestrator/cli/http-client.js";
import { type LocalFleet, startLocalFleet } from "../../orchestrator/cli/local/local-fleet.js";
import { LayercastError } from "../../orchestrator/contract/errors.js";
import type { ReloadStateName, ReloadView } from "../../orchestrator/contract/reload.js";
import { TERMINAL_STATES } from "../../orchestrator/contract/reload.js";
import { runCaptured } from "../cli/captured.js";

export const FIXTURES = join(import.meta.dirname, "../fixtures");
export const CHECKPOINTS = join(FIXTURES, "checkpoints");

export function checkpoint(model: string, version = "v1"): string {
  return pathToFileURL(join(CHECKPOINTS, model, version)).href;
}

export interface Cluster {
  fleet: string;
  tp: number;
  replicas: number;
  /** Of its processes. */
  env: NodeJS.ProcessEnv;
  /** Of the private Redis. */
  redisUrl: string;
  client: Client;
  /** Of the process that runs now as "orchestrator" or "worker P/R". */
  pidOf(name: string): number;
  directory: string;
  /** The run directory of its processes. */
  runDir: string;
  /** Sources of the tests' own making go here. */
  sources: string;
  lines: string[];
  /** The next process to reach the point does this; `n` orders several. */
  fault(point: string, action: "fail" | "kill" | "stop" | "wait", n?: number): Fault;
  /** Submits and waits for the end. */
  reload(body: SubmitBody): Promise<ReloadView>;
  submit(body: SubmitBody): Promise<ReloadView>;
  ended(id: string): Promise<ReloadView>;
  /** Waits for a state, or any later one. */
  reached(id: string, state: ReloadStateName): Promise<ReloadView>;
  /** Waits until the promise is kept, with a deadline like all waits. */
  until<Result>(what: string, attempt: () => Promise<Result | null>): Promise<Result>;
  /** What a rank holds, read from `layercast export`. */
  export(rank: number, replica?: number): Promise<Golden>;
  /** Of every rank of every replica. */
  exportAll(): Promise<Golden[]>;
  /** The command line, in this process. */
  cli(...args: string[]): Promise<{ code: number; out: string; err: string }>;
  /** Waits until the fleet's ranks and routing are as the predicate says. */
  fleetWhere(matches: (fleet: Awaited<ReturnType<Client["fleet"]>>) => boolean): Promise<void>;
  /** Waits for an orchestrator that was killed to be there again. */
  whenAnswering(): Promise<void>;
  stop(): Promise<void>;
}

export interface Fault {
  /** Waits until a process has reached the point; its id. */
  hit(): Promise<number>;
  /** Ends a `wait`, or takes the fault away if nobody has reached it. */
  release(): void;
}

export interface SubmitBody {
  source: string;
  [field: string]: unknown;
}

const DEADLINE_MS = 30_000;
const POLL_MS = 10;

export interface ClusterOptions {
  tp: number;
  ep?: boolean;
  replicas?: number;
  fleet?: string;
  device?: string;
  /** Where the arenas, Redis and all else of a run lie; default: in the cluster's directory. */
  runDir?: string;
  env?: NodeJS.ProcessEnv;
}

export async function startCluster(options: ClusterOptions): Promise<Cluster> {
  const { tp, ep = false, replicas = 1, fleet = "default", device = "cpu" } = options;
  const directory = mkdtempSync(join(tmpdir(), "layercast-e2e-"));
  const faults = join(directory, "faults");
  const sources = join(directory, "sources");
  for (const path of [faults, sources]) mkdirSync(path);
  const lines: string[] = [];
  const env = {
    ...process.env,
    LAYERCAST_FAULTS: faults,
    LAYERCAST_POISON: "1",
    LAYERCAST_THREADS: "2",
    LAYERCAST_LOG_LEVEL: "info",
    ...options.env,
  };
  const local = await startLocalFleet({
    fleet,
    replicas,
    tp,
    ep,
    device,
    port: 0,
    runDir: options.runDir ?? join(directory, "run"),
    sourceRoots: [CHECKPOINTS, sources],
    redisUrl: null,
    token: null,
    env,
    healthyAfterMs: 0, // tests kill more often than life does
    watcher: {
      line: (source, text) => void lines.push(`${source}: ${text}`),
      note: (source, words) => void lines.push(`${source}: ${words}`),
      gaveUp: (source) => void lines.push(`${source}: gave up`),
    },
  });
  await readyOrExplain(local, lines);
  return clusterOf({ local, fleet, tp, replicas, env, directory, faults, sources, lines });
}

async function readyOrExplain(local: LocalFleet, lines: string[]): Promise<void> {
  await local.whenReady(AbortSignal.timeout(DEADLINE_MS)).catch(async (error: unknown) => {
    await local.stop();
    throw new Error(`not ready, waits for ${local.waitsFor()}:\n${lines.slice(-40).join("\n")}`, { cause: error });
  });
}

interface Parts {
  local: LocalFleet;
  fleet: string;
  tp: number;
  replicas: number;
  env: NodeJS.ProcessEnv;
  directory: string;
  faults: string;
  sources: string;
  lines: string[];
}

function clusterOf({ local, fleet, tp, replicas, env, directory, faults, sources, lines }: Parts): Cluster {
  const { client } = local;
  let exports = 0;

  // As a trainer should: an answer may be lost with the orchestrator that was to give it, so the same submission is made again.
  const submit = ({ source, ...body }: SubmitBody) => {
    const draft = {
      fleet,
      submission_id: randomUUID(),
      source: { kind: "safetensors" as const, uri: source },
      ...body,
    };
    return until(
      () => "the submission to be answered",
      lines,
      () => client.submit(draft).catch(whileUnreachable),
    );
  };
  const ended = (id: string) => {
    let last = "";
    return until(
      () => `reload ${id} to end (${last})`,
      lines,
      async () => {
        const reload = await client.reload(id).catch(whileUnreachable);
        if (reload === null) return null;
        if (TERMINAL_STATES.includes(reload.state)) return reload;
        last = `${reload.state}, ${reload.pending_reason}`;
        return null;
      },
    );
  };
  const cli: Cluster["cli"] = (...args) =>
    runCaptured([...args, "--url", client.url], { columns: () => 100, rows: () => 40 });
  const exportRank: Cluster["export"] = async (rank, replica = 0) => {
    exports += 1;
    const file = join(directory, `export-${exports}.safetensors`);
    const place = ["--replica", String(replica), "--rank", String(rank)];
    const { code, err } = await cli("export", "--fleet", fleet, ...place, "--out", file);
    expect(err).toBe("");
    expect(code).toBe(0);
    const digests = await readTensorDigests(file);
    rmSync(file);
    return digests;
  };

  return {
    fleet,
    tp,
    replicas,
    env,
    redisUrl: `unix:${join(local.runDir, "redis", "redis.sock")}`,
    client,
    pidOf: (name) => local.pids.get(name) ?? 0,
    directory,
    runDir: local.runDir,
    sources,
    lines,
    submit,
    ended,
    cli,
    fault: (point, action, n = 0) => placeFault(faults, `${point}.${String(n).padStart(4, "0")}.${action}`, lines),
    reload: async (body) => ended((await submit(body)).reload_id),
    reached: (id, state) =>
      until(
        () => `reload ${id} to be ${state}`,
        lines,
        async () => {
          const reload = await client.reload(id).catch(whileUnreachable);
          if (reload === null) return null;
          const passed = TERMINAL_STATES.includes(reload.state) || ORDER.indexOf(reload.state) >= ORDER.indexOf(state);
          return passed ? reload : null;
        },
      ),
    export: exportRank,
    exportAll: () =>
      Promise.all(Array.from({ length: replicas * tp }, (_, at) => exportRank(at % tp, Math.floor(at / tp)))),
    until: (what, attempt) => until(() => what, lines, attempt),
    fleetWhere: async (matches) => {
      await until(
        () => "the fleet to be as expected",
        lines,
        async () => {
          // A Redis that has lost its file knows no fleet until a rank registers again.
          const view = await client.fleet(fleet).catch((error) => (isUnknown(error) ? null : whileUnreachable(error)));
          return view !== null && matches(view) ? view : null;
        },
      );
    },
    async whenAnswering() {
      await until(
        () => "the orchestrator to answer",
        lines,
        async () => (await client.ready()) || null,
      );
    },
    async stop() {
      await local.stop();
      rmSync(directory, { recursive: true, force: true });
    },
  };
}

/** null while no orchestrator, or no Redis behind it, answers. */
function whileUnreachable(error: unknown): null {
  if (error instanceof LayercastError && UNREACHABLE.includes(error.code)) return null;
  throw error;
}

function isUnknown(error: unknown): boolean {
  return error instanceof LayercastError && error.code === "not_found";
}

const UNREACHABLE = ["io_error", "redis_unavailable"];

const ORDER: readonly ReloadStateName[] = ["queued", "planning", "loading", "finalizing", "committing", "committed"];

function placeFault(directory: string, name: string, lines: string[]): Fault {
  writeFileSync(join(directory, name), "");
  const hitPath = join(directory, `${name}.hit`);
  return {
    hit: () =>
      until(
        () => `fault ${name} to be hit`,
        lines,
        async () => (existsSync(hitPath) && Number(readFileSync(hitPath, "utf8"))) || null,
      ),
    release() {
      for (const path of [join(directory, name), hitPath]) rmSync(path, { force: true });
    },
  };
}

/** Every wait of a test has a deadline, and says what it waited for. */
export async function until<Result>(
  what: () => string,
  lines: string[],
  attempt: () => Promise<Result | null>,
): Promise<Result> {
  const deadline = performance.now() + DEADLINE_MS;
  for (;;) {
    const result = await attempt();
    if (result !== null) return result;
    if (performance.now() > deadline) {
      throw new Error(`waited ${DEADLINE_MS} ms for ${what()}; the last lines:\n${lines.slice(-40).join("\n")}`);
    }
    await delay(POLL_MS);
  }
}

/** Faults left over would strike the next test. */
export function clearFaults(cluster: Cluster): void {
  const directory = join(cluster.directory, "faults");
  for (const name of readdirSync(directory)) rmSync(join(directory, name), { force: true });
}

/** A process that has ended counts as gone even while its parent has not looked. */
export function isAlive(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    return !["Z", "X"].includes(stat.charAt(stat.lastIndexOf(")") + 2));
  } catch {
    return false;
  }
}
