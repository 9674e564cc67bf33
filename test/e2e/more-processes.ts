// Processes beside a cluster's own: a second orchestrator, a second worker for the same rank.

import type { ChildProcess } from "node:child_process";
import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { type Client, createClient } from "../../orchestrator/cli/http-client.js";
import { onLines } from "../../orchestrator/cli/local/child-log.js";
import { endProcess, signalGroup, spawnOwned } from "../../orchestrator/cli/local/owned-process.js";
import type { ReloadView } from "../../orchestrator/contract/reload.js";
import { packageRoot } from "../../orchestrator/host/package-root.js";
import { CHECKPOINTS, type Cluster, isAlive, type SubmitBody } from "./cluster.js";

interface MoreProcess {
  pid: number;
  /** Goes on if it was stopped, and ends. */
  end(): Promise<void>;
}

export type SecondOrchestrator = MoreProcess & { client: Client };

export async function startOrchestrator(cluster: Cluster): Promise<SecondOrchestrator> {
  const place = ["--host", "127.0.0.1", "--port", "0", "--source-root", CHECKPOINTS];
  const { child, lines, end } = start(cluster, ["orchestrator", ...place]);
  const url = await cluster.until("the second orchestrator to listen", async () => {
    const line = lines.find((one) => one.includes("listening on http"));
    return line === undefined ? null : line.slice(line.indexOf("http"));
  });
  return { pid: child.pid ?? 0, client: createClient(url, null), end };
}

/** Asks both orchestrators for the same reload, because the one that is about to die or stand still may not answer. */
export function submitToBoth(
  cluster: Cluster,
  { client }: SecondOrchestrator,
  { source, ...body }: SubmitBody,
): Promise<ReloadView> {
  const same = { submission_id: randomUUID(), ...body };
  const second = { fleet: cluster.fleet, source: { kind: "safetensors" as const, uri: source }, ...same };
  return Promise.any([cluster.submit({ source, ...same }), client.submit(second)]);
}

/** What must run again after a law, whether it held or not. */
export function goOn(cluster: Cluster, { pid }: MoreProcess): void {
  for (const one of [pid, cluster.pidOf("orchestrator")]) if (isAlive(one)) process.kill(one, "SIGCONT");
}

export function startWorker(cluster: Cluster, rank: number, ...more: string[]): MoreProcess & { child: ChildProcess } {
  const place = ["--fleet", cluster.fleet, "--rank", String(rank), "--tp", String(cluster.tp)];
  // Of two --run-dir the last counts.
  const { child, end } = start(cluster, ["worker", ...place, "--run-dir", cluster.runDir, ...more]);
  return { pid: child.pid ?? 0, child, end };
}

function start(cluster: Cluster, args: string[]): { child: ChildProcess; lines: string[]; end(): Promise<void> } {
  const lines: string[] = [];
  const child = spawnOwned(process.execPath, [join(packageRoot(), "dist/orchestrator/cli/main.js"), ...args], {
    env: { ...cluster.env, REDIS_URL: cluster.redisUrl },
    stdio: ["ignore", "pipe", "pipe"],
  });
  onLines(child, (line) => {
    lines.push(line);
    cluster.lines.push(`second ${args[0]}: ${line}`);
  });
  const end = async () => {
    signalGroup(child, "SIGCONT");
    await endProcess(child, END_MS);
  };
  return { child, lines, end };
}

const END_MS = 5_000;
