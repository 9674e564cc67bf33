// What a log says of a Redis that does not serve: a line when that begins, one for each further reason, a reminder that gets
// rarer, a line when it serves again. Whatever asks Redis for something fails many times a second meanwhile, and each failure
// would be a line and a stack.

import type { RedisTrouble } from "./redis-trouble.js";

export interface RedisNotices {
  /** Something has failed for that reason. */
  note(trouble: RedisTrouble): void;
}

export type Say = (level: "info" | "warn", words: string) => void;

interface Outage {
  since: number;
  lastAt: number;
  codes: Set<string>;
  reason: string;
  remindAt: number;
  pauseMs: number;
}

/** Longer than between two tries to connect to a host that answers nothing. */
const QUIET_MS = 5_000;
const LOOK_EVERY_MS = 1_000;
/** Between a line that says what is waited for and the next. */
const FIRST_PAUSE_MS = 10_000;
const LONGEST_PAUSE_MS = 60_000;

export function openRedisNotices(place: string, say: Say, now = () => performance.now()): RedisNotices {
  let outage: Outage | null = null;
  let timer: NodeJS.Timeout | undefined;

  function look(): void {
    if (outage === null) return;
    const seconds = Math.round((now() - outage.since) / 1_000);
    if (now() - outage.lastAt > QUIET_MS) {
      say("info", `Redis at ${place} serves again, after ${Math.round((outage.lastAt - outage.since) / 1_000)} s`);
      outage = null;
      clearInterval(timer);
    } else if (now() >= outage.remindAt) {
      say("warn", `Still waiting for Redis at ${place} after ${seconds} s: ${outage.reason}`);
      outage.pauseMs = Math.min(outage.pauseMs * 2, LONGEST_PAUSE_MS);
      outage.remindAt = now() + outage.pauseMs;
    }
  }

  return {
    note({ code, reason }) {
      const isFirst = outage === null;
      outage ??= {
        ...{ since: now(), lastAt: now(), codes: new Set(), reason },
        ...{ remindAt: now() + FIRST_PAUSE_MS, pauseMs: FIRST_PAUSE_MS },
      };
      if (isFirst) timer = setInterval(look, LOOK_EVERY_MS).unref();
      if (!outage.codes.has(code)) say("warn", `Waiting for Redis at ${place}: ${reason}`);
      outage.codes.add(code);
      outage.lastAt = now();
      outage.reason = reason;
    },
  };
}
