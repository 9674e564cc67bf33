// How a log speaks of a Redis that does not serve: few lines, whatever meets it and however often.

import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { createLog } from "../../orchestrator/host/log.js";

const refused = () => Object.assign(new Error("connect ECONNREFUSED 127.0.0.1:6379"), { code: "ECONNREFUSED" });
const readOnly = () => new Error("READONLY You can't write against a read only replica.");

function logged() {
  const lines: string[] = [];
  const destination = { write: (line: string) => void lines.push((JSON.parse(line) as { msg: string }).msg) };
  const options = { name: "worker", logLevel: "info", redisUrl: "redis://:secret1@host:6400/3", token: null } as const;
  return { log: createLog(options, destination), lines };
}

describe("of a Redis that does not serve", () => {
  beforeEach(() => {
    vi.useFakeTimers({ toFake: ["setInterval", "clearInterval", "performance"] });
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  it("a log has a line at its loss, reminders that get rarer, and a line at its return", () => {
    const { log, lines } = logged();
    for (let second = 0; second < 200; second++) {
      for (let failure = 0; failure < 20; failure++)
        log.child({ fleet: "f" }).warn({ err: refused() }, "the sweep failed");
      vi.advanceTimersByTime(1_000);
    }
    vi.advanceTimersByTime(10_000);
    const waits = "waiting for Redis at host:6400";
    expect(lines).toEqual([
      "Waiting for Redis at host:6400: connect ECONNREFUSED 127.0.0.1:6379",
      ...[10, 30, 70, 130, 190].map(
        (seconds) => `Still ${waits} after ${seconds} s: connect ECONNREFUSED 127.0.0.1:6379`,
      ),
      "Redis at host:6400 serves again, after 199 s",
    ]);
  });

  it("each reason is said once", () => {
    const { log, lines } = logged();
    for (const error of [refused(), readOnly(), refused(), readOnly()]) log.error({ err: error }, "failed");
    expect(lines).toEqual([
      "Waiting for Redis at host:6400: connect ECONNREFUSED 127.0.0.1:6379",
      "Waiting for Redis at host:6400: READONLY You can't write against a read only replica.",
    ]);
  });

  it("nothing else is kept back", () => {
    const { log, lines } = logged();
    log.warn({ err: refused() }, "redis");
    log.warn({ err: new Error("something else") }, "this is said");
    log.info("and this");
    expect(lines.slice(1)).toEqual(["this is said", "and this"]);
  });
});
