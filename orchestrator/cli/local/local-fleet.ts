// One machine's worth of Layercast as child processes: a private Redis (unless one is given), an orchestrator, and a worker
// a rank, each kept running. Started in that order, stopped in the reverse one.

import type { ChildProcess } from "node:child_process";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { LayercastError } from "../../contract/errors.js";
import type { FleetView } from "../../contract/reload.js";
import { packageRoot } from "../../host/package-root.js";
import { type Client, createClient } from "../http-client.js";
import { onLines } from "./child-log.js";
import { endProcess, spawnOwned } from "./owned-process.js";
import { preparePrivateRedis } from "./redis-server.js";
import { claimRunDir } from "./run-dir.js";
import { type Supervised, supervise } from "./supervise.js";

export interface LocalFleetOptions {
  fleet: string;
  replicas: number;
  tp: number;
  /** Whole experts by rank. */
  ep?: boolean;
  device: string;
  /** 0: any free one. */
  port: number;
  runDir: string;
  sourceRoots: readonly string[];
  /** As the orchestrator takes them; none: what its environment says. */
  hookHosts?: readonly string[];
  /** null: a private one in the run directory. */
  redisUrl: string | null;
  token: string | null;
  env: NodeJS.ProcessEnv;
  watcher: FleetWatcher;
  /** A process that ran this long is started again at once when it ends. */
  healthyAfterMs?: number | undefined;
}

export interface FleetWatcher {
  /** A line that a child wrote. */
  line(source: string, text: string): void;
  /** What happened to a child. */
  note(source: string, words: string): void;
  /** A child that is not started again, because its settings are wrong. */
  gaveUp(source: string): void;
}

export interface LocalFleet {
  client: Client;
  runDir: string;
  /** Of what runs now under the names "orchestrator" and "worker P/R". */
  pids: ReadonlyMap<string, number>;
  /** Resolves when the orchestrator is ready and every rank of this fleet has registered. */
  whenReady(signal: AbortSignal): Promise<FleetView>;
  /** What whenReady still waits for, in words. */
  waitsFor(): string;
  /** Workers, then the orchestrator, then Redis; each in its own time. */
  stop(): Promise<void>;
  /** All at once, now. */
  kill(): void;
}

/** A little more than they give themselves. */
const WORKER_GRACE_MS = 35_000;
const ORCHESTRATOR_GRACE_MS = 12_000;
const REDIS_GRACE_MS = 5_000;
const READY_POLL_MS = 50;

export async function startLocalFleet(options: LocalFleetOptions): Promise<LocalFleet> {
  const port = await claimPort(options.port);
  const runDir = await claimRunDir(options.runDir);
  const redis = options.redisUrl === null ? await startRedis(join(runDir, "redis"), options) : null;
  const env = { ...options.env, REDIS_URL: redis?.url ?? options.redisUrl ?? "" };
  const client = createClient(`http://127.0.0.1:${port}`, options.token);
  const pids = new Map<string, number>();

  const keep = (name: string, graceMs: number, args: string[]): Supervised =>
    supervise(
      { name, graceMs, healthyAfterMs: options.healthyAfterMs, spawn: () => spawnSelf(args, env) },
      {
        started: (child) => {
          pids.set(name, child.pid ?? 0);
          onLines(child, (text) => options.watcher.line(name, text));
        },
        ended: (words, restartInMs) => reportEnd(options.watcher, name, words, restartInMs),
      },
    );
  const orchestrator = keep("orchestrator", ORCHESTRATOR_GRACE_MS, orchestratorArgs(options, runDir, port));
  const workers = rankList(options).map(({ replica, rank }) =>
    keep(workerName(replica, rank), WORKER_GRACE_MS, workerArgs(options, runDir, replica, rank)),
  );

  let waitsFor = "the orchestrator";
  return {
    client,
    runDir,
    pids,
    waitsFor: () => waitsFor,
    whenReady: async (signal) => {
      while (true) {
        const fleet = (await client.ready()) ? await client.fleet(options.fleet).catch(() => null) : null;
        const missing = fleet === null ? null : missingRanks(options, fleet, pids);
        if (fleet !== null && missing?.length === 0) return fleet;
        waitsFor = missing?.join(", ") ?? "the orchestrator";
        await sleep(READY_POLL_MS, null, { signal });
      }
    },
    stop: async () => {
      await Promise.all(workers.map((worker) => worker.stop()));
      await orchestrator.stop();
      await redis?.supervised.stop();
    },
    kill: () => {
      for (const one of [...workers, orchestrator, ...(redis === null ? [] : [redis.supervised])]) one.kill();
    },
  };
}

async function startRedis(
  directory: string,
  { watcher, healthyAfterMs }: LocalFleetOptions,
): Promise<{ url: string; supervised: Supervised }> {
  const prepared = await preparePrivateRedis({ directory });
  // The first start is awaited, so that its failure ends `up` with the reason instead of being tried again and again.
  let first: ChildProcess | null = prepared.spawn();
  try {
    await prepared.waitUntilReady(first);
  } catch (error) {
    await endProcess(first, REDIS_GRACE_MS);
    throw error;
  }
  const spawn = () => {
    const child = first ?? prepared.spawn();
    first = null;
    return child;
  };
  const supervised = supervise(
    { name: "redis", graceMs: REDIS_GRACE_MS, healthyAfterMs, spawn },
    {
      started: () => undefined,
      ended: (words, restartInMs) => reportEnd(watcher, "redis", `${words} (log: ${prepared.logPath})`, restartInMs),
    },
  );
  return { url: prepared.url, supervised };
}

function reportEnd(watcher: FleetWatcher, name: string, words: string, restartInMs: number | null): void {
  if (restartInMs === null) {
    watcher.note(name, `ended with ${words}: its settings are wrong, see what it wrote`);
    watcher.gaveUp(name);
  } else {
    watcher.note(name, `ended with ${words}; starts again in ${restartInMs} ms`);
  }
}

function spawnSelf(args: string[], env: NodeJS.ProcessEnv): ChildProcess {
  return spawnOwned(process.execPath, [builtCli(), ...args], { env, stdio: ["ignore", "pipe", "pipe"] });
}

/** The command line of the orchestrator; a setting that is not in it comes from the environment. */
export function orchestratorArgs(
  options: Pick<LocalFleetOptions, "sourceRoots" | "hookHosts">,
  runDir: string,
  port: number,
): string[] {
  const roots = options.sourceRoots.flatMap((root) => ["--source-root", root]);
  const hookHosts = (options.hookHosts ?? []).flatMap((host) => ["--hook-host", host]);
  const spool = ["--spool-dir", join(runDir, "spool")];
  return ["orchestrator", "--host", "127.0.0.1", "--port", String(port), ...spool, ...roots, ...hookHosts];
}

/** The command line of a worker, likewise. */
export function workerArgs(
  options: Pick<LocalFleetOptions, "fleet" | "replicas" | "tp" | "ep" | "device">,
  runDir: string,
  replica: number,
  rank: number,
): string[] {
  const place = ["--replica", String(replica), "--replicas", String(options.replicas), "--rank", String(rank)];
  const device = options.device === "cuda" ? `cuda:${replica * options.tp + rank}` : options.device;
  const size = ["--tp", String(options.tp), ...(options.ep === true ? ["--ep"] : [])];
  // The run directory is this process's alone: a worker that it did not start is a leftover of an owner before.
  const rest = [...size, "--device", device, "--run-dir", runDir, "--take-over", "arena"];
  return ["worker", "--fleet", options.fleet, ...place, ...rest];
}

const workerName = (replica: number, rank: number) => `worker ${replica}/${rank}`;

function rankList(options: LocalFleetOptions): { replica: number; rank: number }[] {
  const ranks = Array.from({ length: options.tp }, (_, rank) => rank);
  return Array.from({ length: options.replicas }, (_, replica) => ranks.map((rank) => ({ replica, rank }))).flat();
}

/** A rank counts when it is this run's process: Redis still remembers those of the run before. */
function missingRanks(options: LocalFleetOptions, fleet: FleetView, pids: Map<string, number>): string[] {
  return rankList(options)
    .filter(
      ({ replica, rank }) =>
        !fleet.ranks.some(
          (one) =>
            one.replica === replica &&
            one.rank === rank &&
            one.alive &&
            one.pid === pids.get(workerName(replica, rank)),
        ),
    )
    .map(({ replica, rank }) => workerName(replica, rank));
}

/** The program that the children run; from the TypeScript sources too it is the built one. */
function builtCli(): string {
  return join(packageRoot(), "dist", "orchestrator", "cli", "main.js");
}

const PORT_WAIT_MS = 3_000;

/**
 * A number that the orchestrator can listen on, now and when it is started again. An orchestrator whose owner was killed
 * may take a moment to leave its port.
 */
async function claimPort(wanted: number): Promise<number> {
  const deadline = performance.now() + PORT_WAIT_MS;
  while (true) {
    const port = await tryPort(wanted);
    if (port !== null) return port;
    if (performance.now() > deadline) {
      throw new LayercastError(
        "invalid_request",
        `Port ${wanted} is in use: stop what listens on it, or give another --port (0: any free one)`,
        { port: wanted },
      );
    }
    await sleep(READY_POLL_MS);
  }
}

/** null when it is in use. */
function tryPort(wanted: number): Promise<number | null> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", (error: NodeJS.ErrnoException) =>
      error.code === "EADDRINUSE" ? resolve(null) : reject(error),
    );
    server.listen(wanted, "127.0.0.1", () => {
      const address = server.address();
      const port = typeof address === "object" && address !== null ? address.port : wanted;
      server.close(() => resolve(port));
    });
  });
}
