// The run lock on a clock that the test moves: who is asked, what is done when a lock is not given back.

import { describe, expect, it } from "vitest";
import type { FileLock } from "../../../native/native.js";
import { openRunLock, TAKE_WITHIN_MS } from "../../../worker/engines/run-lock.js";

const SWAP = { epoch: 7, reload: "r7" };

/** `freeAt`: when the engine gives its lock back. */
function openWorld(freeAt: number) {
  const said: string[] = [];
  const world = { now: 0, freeAt, said };
  const core = {
    openLock: () => ({}) as FileLock,
    tryLock: () => {
      const isFree = world.now >= world.freeAt;
      if (isFree) said.push("alone");
      return isFree;
    },
    unlock: () => void said.push("free"),
  };
  const clock = {
    now: () => world.now,
    delay: async (ms: number) => {
      world.now += ms;
    },
  };
  const links = {
    stop: (epoch: number, reload: string) => void said.push(`stop ${epoch} ${reload}`),
    go: (epoch: number) => void said.push(`go ${epoch}`),
    names: () => ["vllm 0.26.0 e-0 (process 1 on h)"],
  };
  return { world, gate: openRunLock({ core, path: "/d/running.lock", clock, links }) };
}

describe("a swap", () => {
  it("asks engines to stop, has the lock alone while it runs, and lets them go", async () => {
    const { world, gate } = openWorld(25);
    const result = await gate.whileStill(SWAP, async () => {
      world.said.push("swap");
      return "done";
    });
    expect(result).toBe("done");
    expect(world.said).toEqual(["stop 7 r7", "alone", "swap", "free", "go 7"]);
    expect(world.now).toBe(25);
  });

  it("that fails gives the lock back, and lets engines look for themselves", async () => {
    const { world, gate } = openWorld(0);
    await expect(gate.whileStill(SWAP, () => Promise.reject(new Error("no")))).rejects.toThrow("no");
    expect(world.said).toEqual(["stop 7 r7", "alone", "free", "go 7"]);
  });

  it("under an engine that does not stop is given up after ten seconds, with its name, and may be tried again", async () => {
    const { world, gate } = openWorld(Number.POSITIVE_INFINITY);
    const swap = () => Promise.reject(new Error("a live byte has changed"));
    await expect(gate.whileStill(SWAP, swap)).rejects.toMatchObject({
      code: "engine_running",
      retryable: true,
      message: expect.stringContaining("vllm 0.26.0 e-0 (process 1 on h)"),
    });
    expect(world.now).toBe(TAKE_WITHIN_MS);
    expect(world.said).toEqual(["stop 7 r7", "go 7"]);
  });

  it("tried again at once waits a second first, in which the rank's other engines serve", async () => {
    const { world, gate } = openWorld(Number.POSITIVE_INFINITY);
    await expect(gate.whileStill(SWAP, async () => {})).rejects.toThrow();
    world.freeAt = 0;
    await gate.whileStill(SWAP, async () => {});
    expect(world.now).toBe(TAKE_WITHIN_MS + 1_000);
    await gate.whileStill(SWAP, async () => {});
    expect(world.now).toBe(TAKE_WITHIN_MS + 1_000);
  });
});
