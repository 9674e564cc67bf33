// `unit` needs no Redis that is shared and no build; `schedules` drives the whole protocol in a world of its own; `fuzz` hands the
// checkpoint's readers a million inputs; `e2e` runs the built program as processes; `engine` a real vLLM beside it.

import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    // Native addon, signals, and the kernel's watch over owned processes all want a process, not a thread.
    pool: "forks",
    // A process of its own for each file would import the program 160 times, a third of the unit tests' time.
    isolate: false,
    maxWorkers: 2,
    maxConcurrency: 2,
    projects: [
      {
        extends: true,
        test: {
          name: "unit",
          include: ["test/**/*.test.ts"],
          exclude: [
            "test/e2e/**",
            "test/engine/**",
            "test/bench/**",
            "test/schedules/schedules.test.ts",
            "test/checkpoint/fuzz/**",
          ],
          testTimeout: 15_000,
          hookTimeout: 15_000,
        },
      },
      {
        extends: true,
        test: { name: "schedules", include: ["test/schedules/schedules.test.ts"] },
      },
      {
        extends: true,
        test: { name: "fuzz", include: ["test/checkpoint/fuzz/*.test.ts"] },
      },
      {
        extends: true,
        test: {
          name: "e2e",
          include: ["test/e2e/**/*.test.ts"],
          testTimeout: 120_000,
          hookTimeout: 120_000,
        },
      },
      {
        extends: true,
        // One after the other: each engine takes all the processors that there are.
        test: {
          name: "engine",
          include: ["test/engine/**/*.test.ts"],
          fileParallelism: false,
          testTimeout: 600_000,
          hookTimeout: 300_000,
        },
      },
    ],
  },
});
