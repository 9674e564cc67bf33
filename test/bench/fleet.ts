// A Layercast of the built program for one case: processes as `layercast up` starts them, a client that submits and waits
// for the end by one long poll, and each rank's export.

import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { compareTensors, type Golden, readTensorDigests } from "../../orchestrator/cli/compare-tensors.js";
import type { Client, SubmitDraft } from "../../orchestrator/cli/http-client.js";
import { startLocalFleet } from "../../orchestrator/cli/local/local-fleet.js";
import { type ReloadView, TERMINAL_STATES } from "../../orchestrator/contract/reload.js";
import { packageRoot } from "../../orchestrator/host/package-root.js";
import type { Check } from "./case.js";
import { check } from "./case.js";

export const FIXTURES = join(packageRoot(), "test", "fixtures");

export interface BenchFleet {
  name: string;
  client: Client;
  /** Submits and waits; `clientMs` is from before the submit's request to after the long poll's answer. */
  reload(source: string, body: Omit<SubmitDraft, "source">): Promise<TimedReload>;
  /** Hands the path of a rank's export to `read`, then removes the file. */
  withExport<Result>(rank: number, read: (path: string) => Promise<Result>): Promise<Result>;
  stop(): Promise<void>;
}

export interface TimedReload {
  reload: ReloadView;
  clientMs: number;
}

const READY_TIMEOUT_MS = 30_000;

export async function startBenchFleet(options: {
  tp: number;
  directory: string;
  sources: string;
  device?: string;
}): Promise<BenchFleet> {
  const { tp, directory, sources, device = "cpu" } = options;
  const name = `bench-${process.pid}`;
  const lines: string[] = [];
  const keep = (line: string) => {
    lines.push(line);
    if (lines.length > 40) lines.shift();
  };
  const local = await startLocalFleet({
    fleet: name,
    replicas: 1,
    tp,
    device,
    port: 0,
    runDir: join(directory, "run"),
    sourceRoots: [sources],
    redisUrl: process.env.REDIS_URL ?? null,
    token: null,
    env: process.env,
    watcher: {
      line: (source, text) => keep(`${source}: ${text}`),
      note: (source, words) => keep(`${source}: ${words}`),
      gaveUp: (source) => keep(`${source}: gave up`),
    },
  });
  try {
    await local.whenReady(AbortSignal.timeout(READY_TIMEOUT_MS));
  } catch (error) {
    await local.stop();
    throw new Error(`the fleet is not ready, it waits for ${local.waitsFor()}:\n${lines.join("\n")}`, { cause: error });
  }
  const { client } = local;
  return {
    name,
    client,
    async reload(source, body) {
      const uri = pathToFileURL(source).href;
      const startedAt = performance.now();
      const { reload_id } = await client.submit({ fleet: name, source: { kind: "safetensors", uri }, ...body });
      const reload = await whenEnded(client.url, reload_id);
      return { reload, clientMs: performance.now() - startedAt };
    },
    async withExport(rank, read) {
      const { path } = await client.exportRank(name, 0, rank);
      try {
        return await read(path);
      } finally {
        await rm(path);
      }
    },
    stop: () => local.stop(),
  };
}

export async function whenEnded(url: string, id: string): Promise<ReloadView> {
  for (;;) {
    const response = await fetch(`${url}/v1/reloads/${id}?wait=60s`);
    const reload = (await response.json()) as ReloadView;
    if (!response.ok || TERMINAL_STATES.includes(reload.state)) return reload;
  }
}

export function exportDigests(fleet: BenchFleet, ranks: number): Promise<Golden[]> {
  return Promise.all(Array.from({ length: ranks }, (_, rank) => fleet.withExport(rank, readTensorDigests)));
}

/** What the ranks hold, tensor by tensor, against digests that are known. */
export async function checkGoldens(
  fleet: BenchFleet,
  { model, version, scheme, ranks }: { model: string; version: string; scheme: string; ranks: number },
): Promise<Check> {
  const path = join(FIXTURES, "goldens", `${model}-${version}.json`);
  const goldens = JSON.parse(await readFile(path, "utf8")) as Record<string, Golden>;
  const wrong = (await exportDigests(fleet, ranks)).flatMap((found, rank) =>
    compareTensors(found, goldens[`tp${ranks}/rank${rank}/${scheme}`] ?? {}).differences.map(
      (line) => `rank ${rank}: ${line}`,
    ),
  );
  return check("exports equal the goldens", wrong);
}

export function allCommitted(timed: readonly TimedReload[]): Check {
  const wrong = timed
    .filter(({ reload }) => reload.state !== "committed")
    .map(({ reload }) => `${reload.reload_id} is ${reload.state}: ${reload.error?.message}`);
  return check("committed", wrong);
}
