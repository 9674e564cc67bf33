// One at a time, in the order of arrival: writers of one document that run side by side would only make each other try again.

import { LayercastError } from "../contract/errors.js";

export interface Turns {
  /** Runs when all before it under this key have ended. Throws `backpressure` when that takes too long; then it never runs. */
  take<Result>(key: string, run: () => Promise<Result>): Promise<Result>;
}

export function openTurns(waitMs: number): Turns {
  const lines = new Map<string, Promise<void>>();
  return {
    async take(key, run) {
      const before = lines.get(key) ?? Promise.resolve();
      let release = () => {};
      const ended = new Promise<void>((resolve) => {
        release = resolve;
      });
      const line = before.then(() => ended);
      lines.set(key, line);
      try {
        await within(before, waitMs, key);
        return await run();
      } finally {
        release();
        if (lines.get(key) === line) lines.delete(key);
      }
    },
  };
}

async function within(before: Promise<void>, waitMs: number, key: string): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(
        new LayercastError(
          "backpressure",
          `Fleet ${key} has had other submissions to write for ${waitMs / 1000} seconds. Try again later.`,
          { fleet: key },
        ),
      );
    }, waitMs);
  });
  try {
    await Promise.race([before, late]);
  } finally {
    clearTimeout(timer);
  }
}
