import type { ChildProcess } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, describe, expect, it } from "vitest";
import { hasExited, spawnOwned } from "../../orchestrator/cli/local/owned-process.js";
import { restartDelayMs, type Supervised, supervise } from "../../orchestrator/cli/local/supervise.js";

interface Watched {
  supervised: Supervised;
  starts: ChildProcess[];
  ends: { words: string; restartInMs: number | null }[];
}

const all: Watched[] = [];
afterEach(async () => {
  for (const { supervised } of all) supervised.kill();
  await Promise.all(all.splice(0).map(({ supervised }) => supervised.stop()));
});

function watch(script: string, graceMs = 5_000): Watched {
  const starts: ChildProcess[] = [];
  const ends: Watched["ends"] = [];
  const spawn = () => spawnOwned("sh", ["-c", script], { stdio: ["ignore", "pipe", "ignore"] });
  const supervised = supervise(
    { name: "child", graceMs, spawn },
    {
      started: (child) => void starts.push(child),
      ended: (words, restartInMs) => void ends.push({ words, restartInMs }),
    },
  );
  const watched = { supervised, starts, ends };
  all.push(watched);
  return watched;
}

async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await sleep(2);
}

async function firstWord(child: ChildProcess | undefined): Promise<string> {
  return new Promise((resolve) => child?.stdout?.once("data", (bytes: Buffer) => resolve(bytes.toString().trim())));
}

describe("a supervised child", () => {
  it("is started again, soon at first and then later and later", async () => {
    const { starts, ends } = watch("exit 1");
    await until(() => starts.length === 3);
    expect(ends.slice(0, 2)).toEqual([
      { words: "exit code 1", restartInMs: 100 },
      { words: "exit code 1", restartInMs: 200 },
    ]);
  });

  it("is started again after a signal killed it", async () => {
    const { starts, ends } = watch("exec sleep 60");
    starts[0]?.kill("SIGKILL");
    await until(() => starts.length === 2);
    expect(ends[0]?.words).toBe("signal SIGKILL");
  });

  it("is left dead when it says that its usage is wrong", async () => {
    const { starts, ends } = watch("exit 2");
    await until(() => ends.length === 1);
    expect(ends[0]?.restartInMs).toBeNull();
    expect(starts).toHaveLength(1);
  });

  it("is not started again once it is stopped, even between two lives", async () => {
    const { supervised, starts, ends } = watch("exit 1");
    await until(() => ends.length === 1);
    await supervised.stop();
    await sleep(2 * restartDelayMs(1));
    expect(starts).toHaveLength(1);
  });

  it("gets SIGTERM first, and SIGKILL with its whole group when it does not listen", async () => {
    const { supervised, starts } = watch('trap "" TERM; echo ready; while :; do sleep 60; done', 50);
    expect(await firstWord(starts[0])).toBe("ready");
    await supervised.stop();
    expect(starts[0]?.signalCode).toBe("SIGKILL");
  });

  it("may end in its own way within the grace", async () => {
    const { supervised, starts } = watch('trap "exit 7" TERM; echo ready; while :; do sleep 0.01; done');
    expect(await firstWord(starts[0])).toBe("ready");
    await supervised.stop();
    expect(starts[0]?.exitCode).toBe(7);
  });

  it("is gone at once when killed", async () => {
    const { supervised, starts } = watch("exec sleep 60");
    supervised.kill();
    await until(() => starts[0] !== undefined && hasExited(starts[0]));
    expect(starts[0]?.signalCode).toBe("SIGKILL");
  });
});

describe("the delay before a restart", () => {
  it("doubles from 100 ms and never exceeds 2 s", () => {
    expect([1, 2, 3, 4].map(restartDelayMs)).toEqual([100, 200, 400, 800]);
    expect(restartDelayMs(50)).toBe(2_000);
  });
});
