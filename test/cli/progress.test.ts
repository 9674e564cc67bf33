import { describe, expect, it } from "vitest";
import {
  atEnd,
  changeLines,
  progressLines,
  startProgress,
  stillLine,
  withEvent,
  withReload,
  withTimeOf,
} from "../../orchestrator/cli/progress.js";
import { COMMITTED, pushView, rankProgress, rankPush, reloadView } from "./views.js";

const start = startProgress(reloadView());
const error = { code: "io_error", message: "read failed", retryable: true, details: {} };

describe("the progress of a reload", () => {
  it("shows a bar a rank, as full as its part of the layers", () => {
    const half = withEvent(start, "progress", rankProgress(1, { layers_done: 2, bytes_read: 1_500_000 }));
    const [title, first, second] = progressLines(half, 1_234, 80, 24);
    expect(title).toBe("reload of default to 120  loading  1.23 s");
    expect(first).toMatch(/^ {2}rank 0\/0 {2}░+ {2}0\/4 {2}loading {4}0 B read$/);
    expect(second).toMatch(/^ {2}rank 0\/1 {2}(█+)(░+) {2}2\/4 {2}loading {4}1\.5 MB read$/);
    const [, full = "", empty = ""] = /(█+)(░+)/.exec(second ?? "") ?? [];
    expect(Math.abs(full.length - empty.length)).toBeLessThanOrEqual(1);
  });

  it("never exceeds the terminal, however narrow and whatever the notes say", () => {
    const noted = withEvent(start, "warning", { code: "w", message: "x".repeat(500), details: {} });
    for (const columns of [20, 40, 80, 200]) {
      for (const line of progressLines(noted, 0, columns, 24)) expect(line.length).toBeLessThanOrEqual(columns);
    }
  });

  it("counts the ranks that the terminal has no room for", () => {
    const ranks = Array.from({ length: 64 }, (_, rank) => rankProgress(rank));
    const lines = progressLines(startProgress(reloadView({ ranks })), 0, 80, 24);
    expect(lines.length).toBeLessThan(24);
    expect(lines.at(-1)).toBe("  and 47 ranks more");
  });

  it("names the replica too where there is more than one", () => {
    const progress = startProgress(reloadView({ ranks: [rankProgress(0), rankProgress(0, { replica: 1 })] }));
    expect(progressLines(progress, 0, 80, 24)[2]).toContain("rank 1/0");
  });

  it("shows of a rank that took its undo back no layers beside a full bar", () => {
    const ranks = [rankProgress(0, { state: "prepared" }), rankProgress(1)];
    const [, first, second] = progressLines(startProgress(reloadView({ kind: "rollback", ranks })), 0, 80, 24);
    expect(first).toMatch(/█ {2}undo {2}prepared/);
    expect(second).toMatch(/░ {2}0\/4 {2}loading/);
  });

  it("has a clock while the reload is under way, and leaves the time of one that has ended to the sentence below", () => {
    expect(progressLines(start, 5_000, 80, 24)[0]).toBe("reload of default to 120  loading  5.00 s");
    for (const ended of [
      startProgress(COMMITTED),
      withEvent(start, "state", { state: "committed", epoch: 1, error: null }),
      withReload(start, COMMITTED),
    ])
      expect(progressLines(ended, 5_000, 80, 24)[0]).not.toMatch(/\d m?s/);
  });

  it("knows from the ids of events how far the reload's own clock is, and never less than before", () => {
    const at = (ms: number) => `${Date.parse(start.reload.created_at) + ms}-0`;
    const told = withTimeOf(start, at(1_500));
    expect(told.toldMs).toBe(1_500);
    for (const id of [at(1_400), null, "odd"]) expect(withTimeOf(told, id)).toBe(told);
    expect(atEnd(told, COMMITTED).toldMs).toBe(1_500);
  });

  it("says what it waits for", () => {
    const waiting = startProgress(reloadView({ state: "queued", ranks: [], pending_reason: "rank 1 is not there" }));
    expect(progressLines(waiting, 0, 80, 24)[1]).toBe("  waits: rank 1 is not there");
  });

  it("does not run ahead of its events when the record is read again, nor give a reason of another state", () => {
    const read = withReload(start, reloadView({ state: "committing", pending_reason: "rank 1 has not swapped" }));
    expect(progressLines(read, 0, 80, 24)).toEqual(progressLines(start, 0, 80, 24));
    expect(changeLines(start, read)).toEqual([]);
  });

  it("keeps the last three retries and warnings in sight", () => {
    const noted = [1, 2, 3, 4].reduce(
      (progress, attempt) => withEvent(progress, "retry", { replica: 0, rank: 1, layer: "lm_head", attempt, error }),
      start,
    );
    expect(progressLines(noted, 0, 80, 24).slice(3)).toEqual([
      "  try 2 of rank 0/1, lm_head failed: io_error: read failed",
      "  try 3 of rank 0/1, lm_head failed: io_error: read failed",
      "  try 4 of rank 0/1, lm_head failed: io_error: read failed",
    ]);
  });

  it("shows of a push its buckets, and what each rank buffers now and at most", () => {
    const buckets = { accepted: 4, consumed: 2, wanted: [1, 3] };
    const ranks = [rankProgress(0, { push: rankPush(1_500_000, 3_000_000) }), rankProgress(1)];
    const [, sent, first, second] = progressLines(
      startProgress(reloadView({ push: pushView({ buckets }), ranks })),
      0,
      80,
      24,
    );
    expect(sent).toBe("  4 buckets, 2 consumed, wanted again: 1, 3");
    expect(first).toMatch(/ 0 B read, 1\.5 MB buffered \(most 3\.0 MB\)$/);
    expect(second).toMatch(/ 0 B read$/);
  });

  it("is not disturbed by an event that it does not know", () => {
    expect(withEvent(start, "phase-of-the-moon", {})).toEqual(start);
  });
});

describe("the lines of a log", () => {
  it("begin with the state and the reason to wait, for nothing has been said before", () => {
    const pending_reason = "fleet_incomplete: no rank of fleet other has registered";
    const queued = startProgress(reloadView({ state: "queued", ranks: [], pending_reason }));
    expect(changeLines(null, queued)).toEqual(["reload-1 queued", `reload-1 waits: ${pending_reason}`]);
  });

  it("say again how it stands when nothing has changed for long", () => {
    const queued = startProgress(
      reloadView({ state: "queued", ranks: [], pending_reason: "waiting behind reload r0" }),
    );
    expect(stillLine(queued)).toBe("reload-1 still queued, waits behind reload r0");
    const loading = startProgress(reloadView({ pending_reason: "waiting for ranks 0/1 to be prepared" }));
    const further = withEvent(loading, "progress", rankProgress(0, { layers_done: 3 }));
    expect(stillLine(further)).toBe("reload-1 still loading, 3 of 8 layers done, waits for ranks 0/1 to be prepared");
  });

  it("tell each new reason why a queued reload waits", () => {
    const queued = startProgress(reloadView({ state: "queued" }));
    const waiting = withReload(queued, reloadView({ state: "queued", pending_reason: "rank 1 is not there" }));
    expect(changeLines(queued, waiting)).toEqual(["reload-1 waits: rank 1 is not there"]);
    expect(changeLines(waiting, withReload(waiting, { ...waiting.reload }))).toEqual([]);
  });

  it("tell of a push when a bucket is wanted again, not that one was consumed, and when all is sent", () => {
    const open = startProgress(reloadView({ push: pushView() }));
    const consumed = withEvent(open, "bucket", { bucket: 2, state: "consumed" });
    expect(changeLines(open, consumed)).toEqual([]);
    const wanted = withEvent(consumed, "bucket", { bucket: 2, state: "wanted" });
    expect(changeLines(consumed, wanted)).toEqual(["reload-1 bucket 2 is wanted again"]);
    const finished = withReload(wanted, reloadView({ push: pushView({ finished: true }) }));
    expect(changeLines(wanted, finished)).toEqual(["reload-1 all sent: 4 buckets, 3 consumed"]);
  });

  it("are one for each change of a state and each note, and none for mere progress", () => {
    const further = withEvent(start, "progress", rankProgress(0, { layers_done: 3 }));
    expect(changeLines(start, further)).toEqual([]);
    const prepared = withEvent(further, "progress", rankProgress(0, { layers_done: 4, state: "prepared" }));
    expect(changeLines(further, prepared)).toEqual(["reload-1 rank 0/0 prepared, 4 layers done"]);
    const retried = withEvent(prepared, "retry", { replica: 0, rank: 1, layer: "lm_head", attempt: 1, error });
    expect(changeLines(prepared, retried)).toEqual([
      "reload-1 try 1 of rank 0/1, lm_head failed: io_error: read failed",
    ]);
    const finalizing = withEvent(retried, "state", { state: "finalizing", epoch: 1, error: null });
    expect(changeLines(retried, finalizing)).toEqual(["reload-1 finalizing"]);
    expect(changeLines(finalizing, atEnd(finalizing, reloadView({ state: "committed", ranks: [] })))).toEqual([
      "reload-1 committed",
    ]);
  });
});
