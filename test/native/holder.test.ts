// layercast-holder as a process: what it says, what it holds, and when it ends.

import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { loadNative } from "../../native/native.js";
import { STAND_IN_LIBRARY, useStandIn } from "./stand-in.js";

const core = loadNative();
const ADDON = join(import.meta.dirname, "../../native/build/Release/layercast.node");
const MIB = 2 ** 20;
const TOTAL_BYTES = useStandIn(64 * MIB);
const device = core.openDevice("cuda:0");

let directory: string;
let started: ChildProcess[];
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "layercast-holder-"));
  started = [];
});
afterEach(async () => {
  await Promise.all(started.map(end));
  rmSync(directory, { recursive: true });
});

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill("SIGKILL");
  await once(child, "exit");
}

const alivePath = (): string => join(directory, "alive");

function argumentsOf(bytes: number, graceMs: number): string[] {
  const memory = ["--library", STAND_IN_LIBRARY, "--device", "0", "--bytes", String(bytes)];
  return [...memory, "--alive", alivePath(), "--grace-ms", String(graceMs)];
}

/** A holder, and what it printed before it closed its output. */
async function startHolder(bytes: number, graceMs: number): Promise<{ holder: ChildProcess; printed: string }> {
  const holder = spawn(core.holderPath, argumentsOf(bytes, graceMs), { stdio: ["ignore", "pipe", "pipe"] });
  started.push(holder);
  let printed = "";
  for (const stream of [holder.stdout, holder.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => {
      printed += text;
    });
  }
  await Promise.all([once(holder.stdout, "end"), once(holder.stderr, "end")]);
  return { holder, printed };
}

/** A process that is ready to take the shared lock for life, as a worker does; the returned function has it take it. */
async function startWorker(): Promise<{ worker: ChildProcess; lock: () => Promise<void> }> {
  const script = `const core = require(${JSON.stringify(ADDON)}); console.log("ready");
    process.stdin.on("data", () => { core.shareLock(${JSON.stringify(alivePath())}, 5_000); console.log("locked"); })`;
  const worker = spawn(process.execPath, ["-e", script], { stdio: ["pipe", "pipe", "inherit"] });
  started.push(worker);
  await once(worker.stdout, "data");
  async function lock(): Promise<void> {
    worker.stdin.write("lock\n");
    await once(worker.stdout, "data");
  }
  return { worker, lock };
}

async function exitOf(child: ChildProcess): Promise<number | string | null> {
  if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
  return child.exitCode ?? child.signalCode;
}

function isRunning(child: ChildProcess): boolean {
  return child.exitCode === null && child.signalCode === null;
}

const freeBytes = (): number => core.describeDevice(device).freeBytes;

function openHeld(ipcHandle: string, mode: "create" | "attach", dataBytes = MIB) {
  const path = join(directory, "live.safetensors.header");
  return core.openArena({ device, path, mode, headerBytes: new Uint8Array(4096), dataBytes, ipcHandle });
}

describe("a holder", () => {
  it("prints the handle of memory that other processes open, lets go of its output, and lives on", async () => {
    const { holder, printed } = await startHolder(MIB, 60_000);
    expect(printed).toMatch(/^[0-9a-f]{128}\n$/);
    expect(freeBytes()).toBe(TOTAL_BYTES - MIB);
    core.closeArena(openHeld(printed.trim(), "create"));
    core.closeArena(openHeld(printed.trim(), "attach"));
    expect(() => openHeld(printed.trim(), "attach", 2 * MIB)).toThrow(/smaller/);
    expect(isRunning(holder)).toBe(true);
  });

  it("gives the memory back when it is told to end, and when it is killed", async () => {
    for (const signal of ["SIGTERM", "SIGKILL"] as const) {
      const { holder, printed } = await startHolder(MIB, 60_000);
      holder.kill(signal);
      expect(await exitOf(holder)).toBe(signal);
      expect(freeBytes()).toBe(TOTAL_BYTES);
      expect(() => openHeld(printed.trim(), "create")).toThrow(/stand-in/);
    }
  });

  it("does not end with a terminal", async () => {
    const { holder } = await startHolder(MIB, 60_000);
    holder.kill("SIGINT");
    holder.kill("SIGHUP");
    await delay(100);
    expect(isRunning(holder)).toBe(true);
  });

  it("lives while one process has the lock, and ends once none had it for the grace time", async () => {
    const graceMs = 1000;
    const [first, second, successor] = [await startWorker(), await startWorker(), await startWorker()];
    await first.lock();
    await second.lock();
    const { holder } = await startHolder(MIB, graceMs);
    await end(first.worker);
    await delay(2 * graceMs);
    expect(isRunning(holder)).toBe(true);
    await end(second.worker);
    await delay(graceMs / 2);
    await successor.lock();
    await delay(2 * graceMs);
    expect(isRunning(holder)).toBe(true);
    const aloneAt = performance.now();
    await end(successor.worker);
    expect(await exitOf(holder)).toBe(0);
    expect(performance.now() - aloneAt).toBeGreaterThanOrEqual(graceMs);
    expect(freeBytes()).toBe(TOTAL_BYTES);
  });

  it("refuses in a sentence, and says by its exit code whether it was used wrongly or memory ran out", async () => {
    const given = argumentsOf(MIB, 1000);
    const missing = given.map((word) => (word === STAND_IN_LIBRARY ? join(directory, "nowhere.so") : word));
    const wrong = given.map((word) => (word === String(MIB) ? "many" : word));
    for (const [words, code, sentence] of [
      [argumentsOf(65 * MIB, 1000), 3, /^stand-in device: there is no room for \d+ bytes: 0 of \d+ are in use\n$/],
      [missing, 1, /nowhere\.so.*\n$/],
      [[], 2, /--library is missing\nusage: layercast-holder/],
      [wrong, 2, /--bytes is not a number: many\nusage/],
      [[...given, "--extra"], 2, /--extra/],
      [[...given, "--extra", "1"], 2, /--extra/],
    ] as const) {
      const refused = await new Promise<{ code: unknown; stderr: string }>((resolve) => {
        execFile(core.holderPath, words, (error, _stdout, stderr) => resolve({ code: error?.code, stderr }));
      });
      expect(refused.stderr).toMatch(sentence);
      expect(refused.code).toBe(code);
    }
  });
});
