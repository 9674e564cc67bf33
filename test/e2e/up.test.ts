// `layercast up` as a process of its own: what it starts, keeps running, and takes with it.

import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { createClient } from "../../orchestrator/cli/http-client.js";
import { packageRoot } from "../../orchestrator/host/package-root.js";

const CLI = join(packageRoot(), "dist", "orchestrator", "cli", "main.js");
const POLL_MS = 10;

let runDir: string;
const started: ChildProcess[] = [];
beforeEach(() => {
  runDir = mkdtempSync(join(tmpdir(), "layercast up "));
});
afterEach(async () => {
  await Promise.all(started.splice(0).map((up) => endOf(up, "SIGKILL")));
  // What a killed one's children still write must not be in the way.
  rmSync(runDir, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 });
});

interface Up {
  process: ChildProcess;
  output: string[];
  url: string;
}

function spawnUp(...more: string[]): { process: ChildProcess; output: string[] } {
  const env = { ...process.env, LAYERCAST_THREADS: "1" };
  const args = [CLI, "up", "--tp", "2", "--port", "0", "--run-dir", runDir, ...more];
  const up = spawn(process.execPath, args, { env, stdio: ["ignore", "pipe", "pipe"] });
  started.push(up);
  const output: string[] = [];
  for (const stream of [up.stdout, up.stderr])
    createInterface({ input: stream }).on("line", (line) => output.push(line));
  return { process: up, output };
}

async function until<Value>(
  what: string,
  output: string[],
  find: () => Value | null | Promise<Value | null>,
): Promise<Value> {
  const deadline = performance.now() + 30_000;
  while (performance.now() < deadline) {
    const found = await find();
    if (found !== null) return found;
    await sleep(POLL_MS);
  }
  throw new Error(`waited in vain until ${what}:\n${output.slice(-30).join("\n")}`);
}

async function startUp(...more: string[]): Promise<Up> {
  const { process: up, output } = spawnUp(...more);
  const isReady = (line: string) =>
    line.startsWith('{"level":30') && line.includes('"name":"up"') && line.includes('"url"');
  const line = await until("it is ready", output, () => output.find(isReady) ?? null);
  return { process: up, output, url: (JSON.parse(line) as { url: string }).url };
}

async function endOf(child: ChildProcess, signal: NodeJS.Signals): Promise<number | null> {
  if (child.exitCode !== null || child.signalCode !== null) return child.exitCode;
  const exit = new Promise<number | null>((resolve) => child.once("exit", resolve));
  child.kill(signal);
  return exit;
}

/** Processes whose parent is this one. */
function childrenOf(pid: number | undefined): number[] {
  return readdirSync("/proc")
    .map(Number)
    .filter((child) => child > 0 && parentOf(child) === pid);
}

function parentOf(pid: number): number | null {
  try {
    return Number(
      readFileSync(`/proc/${pid}/stat`, "utf8")
        .replace(/^.*\) /, "")
        .split(" ")[1],
    );
  } catch {
    return null; // it has ended meanwhile
  }
}

/** Never 0, which would be this test's own group. */
function kill(pid: number | undefined): void {
  if (pid === undefined) throw new Error("there is no such process");
  process.kill(pid, "SIGKILL");
}

const allGone = (pids: number[]) => (pids.every((pid) => !existsSync(`/proc/${pid}`)) ? true : null);

describe("layercast up", () => {
  it("starts a fleet, keeps it running, and stops all of it on Ctrl-C with exit code 0", async () => {
    const up = await startUp();
    const client = createClient(up.url, null);
    const before = await client.fleet("default");
    expect(before.ranks.map((rank) => rank.alive)).toEqual([true, true]);
    const children = childrenOf(up.process.pid);
    expect(children).toHaveLength(4); // Redis, the orchestrator, two workers

    const killed = before.ranks[1]?.pid;
    kill(killed);
    await until("the killed worker is back", up.output, async () => {
      const rank = (await client.fleet("default")).ranks[1];
      return rank?.alive === true && rank.pid !== killed ? rank : null;
    });
    expect(up.output.join("\n")).toContain("worker 0/1 ended with signal SIGKILL; starts again in 100 ms");

    const all = childrenOf(up.process.pid);
    expect(await endOf(up.process, "SIGINT")).toBe(0);
    expect(allGone([...children, ...all])).toBe(true);
  });

  it("starts its orchestrator and its Redis again, at the same address", async () => {
    const up = await startUp();
    for (const part of ["orchestrator", "redis-server"]) {
      kill(childrenOf(up.process.pid).find((pid) => readFileSync(`/proc/${pid}/cmdline`, "utf8").includes(part)));
    }
    const client = createClient(up.url, null);
    await until("both have been started again", up.output, () =>
      ["orchestrator ended", "redis ended"].every((words) => up.output.some((line) => line.includes(words)))
        ? true
        : null,
    );
    await until("the fleet answers again", up.output, async () => {
      const ready = (await client.ready()) ? await client.fleet("default").catch(() => null) : null;
      return ready?.ranks.every((rank) => rank.alive) === true ? ready : null;
    });
    expect(await endOf(up.process, "SIGTERM")).toBe(0);
  });

  it("leaves nothing behind when it is killed, and the next one takes the run directory over", async () => {
    const first = await startUp();
    const children = childrenOf(first.process.pid);
    await endOf(first.process, "SIGKILL");
    const second = await startUp();
    await until("the first one's children are gone", second.output, () => allGone(children));
    const fleet = await createClient(second.url, null).fleet("default");
    expect(fleet.ranks.map((rank) => rank.alive)).toEqual([true, true]);
    expect(await endOf(second.process, "SIGTERM")).toBe(0);
  });

  it("is refused on a run directory that another one uses, and on a port that is in use", async () => {
    const first = await startUp();
    const same = spawnUp();
    expect(await new Promise((resolve) => same.process.once("exit", resolve))).toBe(1);
    expect(same.output.join("\n")).toContain(`pid ${first.process.pid}`);
    const other = spawnUp("--run-dir", join(runDir, "other"), "--port", new URL(first.url).port);
    expect(await new Promise((resolve) => other.process.once("exit", resolve))).toBe(1);
    expect(other.output.join("\n")).toMatch(/Port \d+ is in use/);
  });

  it("ends with exit code 1 when a child says that its settings are wrong", async () => {
    const up = spawnUp("--device", "abacus");
    expect(await new Promise((resolve) => up.process.once("exit", resolve))).toBe(1);
    expect(up.output.join("\n")).toMatch(/worker 0\/\d ended with exit code 2: its settings are wrong/);
    expect(up.output.join("\n")).toContain("abacus");
  });
});
