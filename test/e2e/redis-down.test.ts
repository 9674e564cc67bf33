// Processes that start before Redis does: they say that they live and what they wait for, and go on once it is there.

import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterEach, beforeEach, expect, it } from "vitest";
import { type PrivateRedis, startPrivateRedis } from "../../orchestrator/cli/local/redis-server.js";
import { packageRoot } from "../../orchestrator/host/package-root.js";
import { openRegisteredFile, rankDirectory } from "../../worker/registered-file.js";

const CLI = join(packageRoot(), "dist", "orchestrator", "cli", "main.js");
const WITHIN = { timeout: 30_000, interval: 20 };

let directory: string;
let redis: PrivateRedis | null = null;
const started: ChildProcess[] = [];
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "layercast-down-"));
});
afterEach(async () => {
  for (const child of started.splice(0)) child.kill("SIGKILL");
  await redis?.stop();
  rmSync(directory, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 });
});

function start(...args: string[]): string[] {
  const env = { ...process.env, REDIS_URL: `unix:${join(directory, "redis.sock")}`, LAYERCAST_THREADS: "1" };
  const child = spawn(process.execPath, [CLI, ...args], { env, stdio: ["ignore", "pipe", "pipe"], cwd: directory });
  started.push(child);
  const lines: string[] = [];
  for (const stream of [child.stdout, child.stderr])
    createInterface({ input: stream }).on("line", (line) => lines.push(line));
  return lines;
}

it("an orchestrator answers that it lives, a worker waits like it, and both begin when Redis does", async () => {
  const orchestrator = start("orchestrator", "--port", "0", "--source-root", directory);
  // A process before has left it, a moment ago.
  const place = { runDir: directory, fleet: "default", replica: 0, rank: 0 };
  openRegisteredFile(place).touch();
  const path = join(rankDirectory(place), "registered");
  const worker = start("worker", "--rank", "0", "--tp", "1", "--run-dir", directory);
  const url = () => /listening on (http\S+)$/m.exec(orchestrator.join("\n"))?.[1] ?? "";
  await expect.poll(url, WITHIN).not.toBe("");
  const statusOf = async (path: string) => (await fetch(`${url()}${path}`)).status;
  expect(await Promise.all(["/livez", "/readyz"].map(statusOf))).toEqual([200, 503]);
  const refused = await fetch(`${url()}/v1/fleets`);
  expect([refused.status, ((await refused.json()) as { code: string }).code]).toEqual([503, "redis_unavailable"]);
  for (const lines of [orchestrator, worker]) {
    await expect.poll(() => lines.join("\n"), WITHIN).toMatch(/Waiting for Redis at .*redis\.sock: connect ENOENT/);
    expect(lines.length).toBeLessThan(5);
  }
  expect(existsSync(path)).toBe(false);

  redis = await startPrivateRedis({ directory, appendOnly: false });
  await expect.poll(() => statusOf("/readyz"), WITHIN).toBe(200);
  const ranks = async () => {
    const listed = (await (await fetch(`${url()}/v1/fleets`)).json()) as { fleets: { ranks: unknown[] }[] };
    return listed.fleets[0]?.ranks.length;
  };
  await expect.poll(ranks, WITHIN).toBe(1);
  await expect.poll(() => existsSync(path), WITHIN).toBe(true);
});

it("`up` with a REDIS_URL that does not answer says what it waits for, and starts nothing", async () => {
  const lines = start("up", "--tp", "1", "--port", "0", "--run-dir", directory);
  await expect.poll(() => lines.join("\n"), WITHIN).toMatch(/Waiting for Redis at .*redis\.sock: connect ENOENT/);
  expect(lines).toHaveLength(1);
});
