// What the Python package pushes is what the fleet then holds, byte for byte.

import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { compareTensors, type Golden } from "../../orchestrator/cli/compare-tensors.js";
import type { ReloadView } from "../../orchestrator/contract/reload.js";
import { CHECKPOINTS, type Cluster, FIXTURES, startCluster } from "./cluster.js";

const PACKAGE = join(import.meta.dirname, "../../worker/python");
const SCHEME = "fp8-block";

let cluster: Cluster;
beforeAll(async () => {
  cluster = await startCluster({ tp: 2 });
});
afterAll(() => cluster.stop());

async function pushFromPython(directory: string, rows: number): Promise<ReloadView> {
  const script = join(import.meta.dirname, "push_checkpoint.py");
  const args = ["-B", script, cluster.client.url, directory, SCHEME, String(rows)];
  const { stdout } = await promisify(execFile)("python3", args, { env: { ...process.env, PYTHONPATH: PACKAGE } });
  return JSON.parse(stdout) as ReloadView;
}

describe("a push from Python", () => {
  it.each([1_000_000, 100])("leaves the known bytes on every rank, in parts of at most %i rows", async (rows) => {
    const reload = await pushFromPython(join(CHECKPOINTS, "tiny-qwen3", "v1"), rows);
    expect(reload).toMatchObject({ state: "committed", push: { finished: true } });
    const goldens = JSON.parse(readFileSync(join(FIXTURES, "goldens", "tiny-qwen3-v1.json"), "utf8")) as Record<
      string,
      Golden
    >;
    for (const [rank, found] of (await cluster.exportAll()).entries()) {
      const { differences } = compareTensors(found, goldens[`tp2/rank${rank}/${SCHEME}`] ?? {});
      expect(differences).toEqual([]);
    }
  });
});
