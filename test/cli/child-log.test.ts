import { describe, expect, it } from "vitest";
import { humanLine } from "../../orchestrator/cli/local/child-log.js";

describe("a child's line on a terminal", () => {
  it("has the time, the child, the level, the words and the fields of a log entry", () => {
    const entry = { level: 40, time: "2026-01-01T10:20:30.456Z", name: "worker", pid: 7, hostname: "h", msg: "retry" };
    expect(humanLine("worker 0/1", JSON.stringify({ ...entry, rank: 1, layer: "lm_head" }), 12)).toBe(
      "10:20:30 worker 0/1    warn  retry  rank=1  layer=lm_head",
    );
  });

  it("takes a number for the time as well, and an error's message for the error", () => {
    const entry = {
      level: 50,
      time: Date.UTC(2026, 0, 1, 1, 2, 3),
      msg: "job failed",
      err: { message: "disk full", stack: "…" },
    };
    expect(humanLine("x", JSON.stringify(entry), 1)).toBe("01:02:03 x  error job failed  err=disk full");
  });

  it("stays as it is when it is no log entry", () => {
    expect(humanLine("worker 0/0", "Segmentation fault", 10)).toBe("         worker 0/0  Segmentation fault");
    expect(humanLine("worker 0/0", "{not json", 10)).toMatch(/ {2}\{not json$/);
  });
});
