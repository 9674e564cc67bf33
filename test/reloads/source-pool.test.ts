// Source work in processes of its own. The processes here are stand-ins that answer, never answer, or die as a path says.

import { type ChildProcess, fork } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { openSourcePool, type SourcePool } from "../../orchestrator/reloads/sources/source-pool.js";
import { expectLayercastRejection } from "../checkpoint/expect-error.js";

const STAND_IN = `
process.on("message", ({ args: [uri] }) => {
  if (uri.endsWith("hangs")) return;
  if (uri.endsWith("dies")) process.exit(1);
  if (uri.endsWith("fails")) return process.send({ error: { code: "source_not_found", message: "gone", retryable: false, details: {} } });
  process.send({ value: uri + " by " + process.pid });
});
process.on("disconnect", () => process.exit());
`;

let directory: string;
let started: ChildProcess[];
let pool: SourcePool;
/** Processes that are told to end go on, as one does that the kernel cannot end. */
let areStuck: boolean;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "layercast-pool-"));
  writeFileSync(join(directory, "stand-in.mjs"), STAND_IN);
  started = [];
  areStuck = false;
  pool = openSourcePool(["/slow", "/good"], () => {
    const child = fork(join(directory, "stand-in.mjs"), { serialization: "advanced", execArgv: [] });
    if (areStuck) {
      Object.assign(child, { kill: () => true, disconnect: () => Object.assign(child, { connected: false }) });
    }
    started.push(child);
    return child;
  });
});
afterEach(() => {
  vi.useRealTimers();
  pool.close();
  for (const { pid } of started) if (pid !== undefined) killIfThere(pid);
  rmSync(directory, { recursive: true, force: true });
});

function killIfThere(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // it has ended
  }
}

/** Only the deadlines' clock stands; it moves when the test says. */
function holdClock(): void {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
}

describe("source work", () => {
  it("is done by a process that stays for the next task", async () => {
    const [one, other] = [await pool.resolve("/good/a"), await pool.resolve("/good/b")];
    expect(one).toBe(`/good/a by ${started[0]?.pid}`);
    expect(other).toBe(`/good/b by ${started[0]?.pid}`);
    expect(started).toHaveLength(1);
  });

  it("that fails, fails as it did there", async () => {
    await expectLayercastRejection(pool.resolve("/good/fails"), "source_not_found", /gone/);
    expect(started).toHaveLength(1);
  });

  it("whose process dies is tried once more, and then is an error", async () => {
    await expectLayercastRejection(pool.resolve("/good/dies"), "io_error", /\/good\/dies/);
    expect(started).toHaveLength(2);
  });

  it("that does not end is an error that names the path, and its process is ended", async () => {
    holdClock();
    const hung = expectLayercastRejection(
      pool.resolve("/slow/hangs"),
      "io_error",
      /\/slow\/hangs .*did not answer within/,
    );
    const ended = new Promise((resolve) => started[0]?.once("exit", (_code, signal) => resolve(signal)));
    await vi.advanceTimersByTimeAsync(60_000);
    await hung;
    expect(await ended).toBe("SIGKILL");
  });

  it("of one root does not wait for another's", async () => {
    const hung = Array.from({ length: 20 }, (_, index) => pool.resolve(`/slow/${index}/hangs`));
    for (const one of hung) one.catch(() => undefined);
    expect(await pool.resolve("/good/a")).toContain("/good/a by");
  });

  it("has so many processes a root, those that cannot be ended among them", async () => {
    areStuck = true;
    holdClock();
    const hung = Array.from({ length: 20 }, (_, index) =>
      pool.resolve(`/slow/${index}/hangs`).catch((error) => error.code),
    );
    await vi.advanceTimersByTimeAsync(60_000);
    expect(new Set(await Promise.all(hung))).toEqual(new Set(["io_error"]));
    const late = pool.resolve("/slow/a").catch((error) => error.code);
    await vi.advanceTimersByTimeAsync(60_000);
    expect(await late).toBe("io_error");
    expect(started.length).toBeLessThanOrEqual(4);
    areStuck = false;
    expect(await pool.resolve("/good/a")).toContain("/good/a by");
  });

  it("goes on when the file system answers again", async () => {
    holdClock();
    const hung = pool.resolve("/slow/hangs").catch((error) => error.code);
    await vi.advanceTimersByTimeAsync(60_000);
    expect(await hung).toBe("io_error");
    expect(await pool.resolve("/slow/a")).toContain("/slow/a by");
  });

  it("of a pool that closes ends at once", async () => {
    const hung = pool.resolve("/slow/hangs").catch((error) => error.code);
    pool.close();
    expect(await hung).toBe("io_error");
  });
});
