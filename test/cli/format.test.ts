import { describe, expect, it } from "vitest";
import {
  fleetLines,
  formatBytes,
  formatMs,
  formatTable,
  planLines,
  reloadLines,
  reloadSentence,
} from "../../orchestrator/cli/format.js";
import { attachedEngine } from "../routes/fake-reloads.js";
import { COMMITTED, FAILED, FLEET, PLAN, pushView, RANK, rankProgress, rankPush, reloadView } from "./views.js";

describe("words for values", () => {
  it("give times in the unit that reads best", () => {
    expect([null, 0, 1.26, 12.6, 999, 1_500, 119_999, 180_000].map(formatMs)).toEqual([
      ...["-", "0.0 ms", "1.3 ms", "13 ms", "999 ms", "1.50 s", "120.00 s", "3.0 min"],
    ]);
  });

  it("give bytes in powers of a thousand", () => {
    expect([0, 999, 1_000, 123_456, 16_060_000_000, 5e15].map(formatBytes)).toEqual([
      ...["0 B", "999 B", "1.0 kB", "123 kB", "16.1 GB", "5000 TB"],
    ]);
  });

  it("align a table's columns, numbers flush right", () => {
    expect(
      formatTable(
        ["name", ">bytes", "why"],
        [
          ["a", "5", ""],
          ["longer", "1000", "x"],
        ],
      ),
    ).toEqual(["name    bytes  why", "a           5", "longer   1000  x"]);
  });

  it("say how a reload ended, and of one that failed the error's code and sentence", () => {
    expect(reloadSentence(COMMITTED)).toBe(
      "committed: reload reload-1 (weight version 120, fleet default) in 30 ms, engines stopped 1.5 ms",
    );
    expect(reloadSentence(FAILED)).toContain("failed: reload reload-1");
    expect(reloadSentence(FAILED)).toContain("non_finite_weights: lm_head.weight holds NaN at [3, 4]");
    expect(reloadSentence(reloadView({ state: "superseded", superseded_by: "reload-2" }))).toMatch(/by reload-2$/);
    expect(reloadSentence(reloadView({ state: "queued", pending_reason: "no ranks" }))).toMatch(/waits: no ranks$/);
  });

  it("say of a push how each rank's matrices were written, and what its buffers held", () => {
    const ranks = [rankProgress(0, { push: rankPush(0, 2_000_000) }), rankProgress(1)];
    const lines = reloadLines(reloadView({ push: pushView({ finished: true }), ranks }));
    const [sent = "", header = "", row = "", ...rest] = lines.slice(
      lines.findIndex((line) => line.startsWith("all sent")),
    );
    expect(sent).toBe("all sent: 4 buckets, 3 consumed");
    expect(header.split(/ {2,}/)).toEqual([
      "rank",
      "buckets",
      "whole",
      "streamed",
      "buffered",
      "buffers now",
      "at most",
      "on the device",
      "at most",
    ]);
    expect(row.split(/ {2,}/)).toEqual(["rank 0/0", "3", "4", "5", "6", "0 B", "2.0 MB", "0 B", "0 B"]);
    expect(rest).toEqual([]);
    expect(reloadLines(reloadView()).join()).not.toContain("buckets");
  });

  it("say of a fleet what it holds, whether it is routable, and what it can go back to", () => {
    expect(fleetLines(FLEET)[0]).toBe(
      "fleet default: 1 x 2 ranks, weight version 120 (epoch 3), routable, can roll back to 119 instantly",
    );
    expect(fleetLines({ ...FLEET, expert_parallel: true })[0]).toContain(": 1 x 2 ranks, expert parallel, weight");
    const torn = { ...FLEET, routable: false, not_routable_reason: "rank 1 is lost", can_roll_back: false };
    expect(fleetLines(torn)[0]).toMatch(/not routable: rank 1 is lost$/);
  });

  it("name each tensor that a plan skips while they are few, and how many when they are many", () => {
    const layer = Array.from({ length: 1_500 }, (_, at) => ({ name: `model.layers.61.${at}`, reason: "layer 61" }));
    const tied = { name: "lm_head.weight", reason: "tied" };
    const lines = planLines({ ...PLAN, expert_parallel: true, skipped: [...layer, tied] });
    expect(lines[0]).toContain("tensor-parallel size 16, expert parallel, recipe as-stored");
    expect(lines.slice(-2)).toEqual([
      "skipped: 1500 tensors, from model.layers.61.0 to model.layers.61.1499 (layer 61)",
      "skipped: lm_head.weight (tied)",
    ]);
  });

  it("say of a fleet which engines stand still and why, and which replicas it goes on without", () => {
    const error = {
      code: "hook_failed",
      message: "the resume hook answered 500",
      retryable: true,
      details: {},
    } as const;
    const lines = fleetLines({
      ...FLEET,
      drained_replicas: [
        { replica: 0, state: "out" },
        { replica: 1, state: "joining" },
      ],
      engines: { state: "resuming", reload_id: "r1", error },
    });
    expect(lines[1]).toMatch(/^replica 0 is drained: .*layercast undrain/);
    expect(lines[2]).toMatch(/^replica 1 is drained: it is in again once/);
    expect(lines[3]).toBe("engines resuming for reload r1: hook_failed: the resume hook answered 500");
  });

  it("say of a fleet's attached engines what each does, where it serves, and why it stands still", () => {
    const engine = attachedEngine();
    const still = attachedEngine({ id: "e-1", state: "starting", url: null, last_stop: null, trouble: "No." });
    const lines = fleetLines({ ...FLEET, attached_engines: [engine, still] }).slice(-4);
    expect(lines[0]).toMatch(/^engine +state +ranks +at +last stop +then served/);
    expect(lines[1]).toMatch(/^vllm 0\.26\.0 +ready +0\/0 0\/1 +http:\/\/gpu-1:8000 +21 ms +120/);
    expect(lines[2]).toMatch(/^vllm 0\.26\.0 +starting +0\/0 0\/1 +gpu-1 +- +-/);
    expect(lines[3]).toBe("engine vllm 0.26.0 e-1 stands still: No.");
  });

  it.each([
    [{ alive: false, ready: true, drained: true }, "lost"],
    [{ alive: true, ready: true, drained: true }, "drained"],
    [{ alive: true, ready: true, drained: false }, "ready"],
    [{ alive: true, ready: false, drained: false }, "alive"],
  ])("say of a rank with %j that it is %s", (flags, word) => {
    expect(fleetLines({ ...FLEET, ranks: [{ ...RANK, ...flags }] }).at(-1)).toMatch(new RegExp(` ${word} `));
  });
});
