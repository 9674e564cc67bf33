import { describe, expect, it } from "vitest";
import {
  attachedEngine,
  committedView,
  fleetView,
  pushView,
  rankProgress,
  rankPush,
  reloadView,
} from "../routes/fake-reloads.js";
import { allOf, dashboard, textOf } from "./modules.js";

const { fleetCards } = await dashboard("draw-fleets.js");
const { listRows } = await dashboard("draw-list.js");
const { reloadPage } = await dashboard("draw-page.js");
const { reloadCard } = await dashboard("draw-reload.js");
const { reloadOfHash, pageOf } = await dashboard("nodes.js");
const list = await dashboard("list.js");

const entryOf = (reload = reloadView(), more = {}) => ({ reload, log: [], sent: null, isFull: true, ...more });
const error = { code: "io_error" as const, message: "The disk is gone.", retryable: true, details: {} };
const retry = {
  id: "1700000000000-1",
  name: "retry",
  payload: { replica: 0, rank: 1, layer: "layers 3", attempt: 1, error },
};

describe("a reload's card", () => {
  it("has no column for retries when there was none, and counts those there were", () => {
    expect(textOf([reloadCard(entryOf(reloadView({ ranks: [rankProgress(0, { attempts: 3 })] })))])).not.toMatch(
      /Retries|Tries/,
    );
    const retried = reloadView({ ranks: [rankProgress(0), rankProgress(1, { retries: 2 })] });
    const [table] = allOf([reloadCard(entryOf(retried))], "table");
    expect(allOf([table as never], "th").at(-1)?.children).toEqual(["Retries"]);
    const last = allOf([table as never], "tr").map((row) => allOf([row], "td").at(-1)?.children);
    expect(last.slice(1)).toEqual([[""], ["2"]]);
  });

  it("shows a push's buckets, buffers and rows, and warnings with their ranks", () => {
    const push = { ...pushView, buckets: { accepted: 12, consumed: 9, wanted: [3, 4] } };
    const warning = {
      code: "out_of_order",
      message: "Modules fill at the same time.",
      details: { ranks: ["0/0", "0/1"] },
    };
    const reload = reloadView({
      push,
      source: "push",
      ranks: [rankProgress(0, { push: rankPush })],
      warnings: [warning],
    });
    const sent = { elements: 30, of: 120, tensors: 2, ofTensors: 9 };
    const drawn = [reloadCard(entryOf(reload, { sent }))];
    const text = textOf(drawn);
    expect(text).toContain("12 buckets accepted, 9 consumed · wanted again: 3, 4");
    expect(text).toContain("Rows received: 25 %, 2 of 9 tensors whole");
    expect(text).toContain("Warning out_of_order: Modules fill at the same time. (ranks 0/0, 0/1)");
    expect(text).toMatch(/Buckets +Buffered +At most/);
    expect(text).toContain("4.0 KiB");
    expect(text).toContain("8.0 KiB");
    expect(allOf(drawn, "progress")[0]?.attributes).toMatchObject({ value: "30", max: "120" });
  });

  it("says of a failed reload's ranks that they are stopped", () => {
    const failed = reloadView({ state: "failed", status: "FAILED", error });
    expect(textOf([reloadCard(entryOf(failed))])).toContain("stopped (loading)");
  });
});

describe("a reload's page", () => {
  it("has ranks, layers, retries, warnings, metadata and the error of a reload long past", () => {
    const warning = { code: "odd", message: "Odd.", details: {} };
    const failed = reloadView({ state: "failed", error, warnings: [warning], metadata: { trainer: "grpo" } });
    const text = textOf(reloadPage("rl-1", entryOf(failed, { log: [retry] }), null));
    for (const part of [
      "0/1",
      "model.layers.1",
      "Try 1 of rank 0/1, layers 3 failed",
      "Warning odd",
      "Metadata: trainer",
    ])
      expect(text).toContain(part);
    expect(text).toContain("io_error: The disk is gone.");
  });

  it("leads on from a reload that was superseded, and says when there is none", () => {
    const replaced = reloadView({ state: "superseded", superseded_by: "rl-2" });
    const links = allOf(reloadPage("rl-1", entryOf(replaced), null), "a").map(({ attributes }) => attributes.href);
    expect(links).toContain("#/reloads/rl-2");
    expect(textOf(reloadPage("rl-9", null, "There is no reload rl-9."))).toContain("There is no reload rl-9.");
  });

  it("has an address that is read back, and a broken one is the overview", () => {
    expect(reloadOfHash(pageOf("rl-1"))).toBe("rl-1");
    expect(["", "#/", "#/reloads/", "#/reloads/%E0%A4%A"].map((hash) => reloadOfHash(hash))).toEqual([
      null,
      null,
      null,
      null,
    ]);
  });
});

describe("the list", () => {
  it("leads to each reload's page and copies its id", () => {
    const rows = listRows([committedView()]);
    expect(allOf(rows, "a")[0]?.attributes.href).toBe("#/reloads/rl-1");
    expect(allOf(rows, "button")[0]?.attributes["data-copy"]).toBe("rl-1");
  });

  const page = (from: number, to: number, next: string | null) => ({
    reloads: Array.from({ length: to - from }, (_, n) => ({ reload_id: `rl-${from + n}` })),
    next_cursor: next,
  });

  it("asks for summaries, with the filter and the cursor", () => {
    const filtered = list.openList({ state: "failed", fleet: "a b" });
    list.takeOlder(filtered, page(0, 20, "rl-19"));
    expect(list.listPath(filtered)).toBe("/v1/reloads?view=summary&limit=20&state=failed&fleet=a+b&cursor=rl-19");
  });

  it("keeps older pages while the newest is read again, and begins again where a gap may be", () => {
    const shown = list.openList();
    expect(list.takeNewest(shown, page(10, 30, "rl-29"))).toBe(true);
    list.takeOlder(shown, page(30, 50, "rl-49"));
    expect(list.takeNewest(shown, page(5, 25, "rl-24"))).toBe(true);
    expect([shown.ids.size, shown.cursor]).toEqual([45, "rl-49"]);
    expect(list.takeNewest(shown, page(-40, -20, "rl--21"))).toBe(false);
  });

  it("shows what matches as it is now, the newest first", () => {
    const shown = list.openList({ state: "failed", fleet: "" });
    const views = ["a", "b", "c"].map((id, n) =>
      reloadView({ reload_id: id, state: n === 1 ? "loading" : "failed", created_at: `2026-01-01T00:00:0${n}.000Z` }),
    );
    list.takeOlder(shown, { reloads: views, next_cursor: null });
    const entries = new Map(views.map((reload) => [reload.reload_id, { reload }]));
    expect(list.shownReloads(shown, entries).map((reload: { reload_id: string }) => reload.reload_id)).toEqual([
      "c",
      "a",
    ]);
  });
});

describe("a fleet's card", () => {
  it("says what a rollback costs", () => {
    expect(textOf(fleetCards([fleetView()]))).toContain("can roll back to 118 instantly");
    expect(textOf(fleetCards([fleetView({ rollback_from: "source" })]))).toContain("118 from its source (a full load)");
  });

  it("shows attached engines with state, version, address, last stop and trouble, and nothing where there are none", () => {
    const still = attachedEngine({ id: "e-1", state: "gone", url: null, last_stop: null, trouble: "Ranks differ." });
    const drawn = fleetCards([fleetView({ attached_engines: [attachedEngine(), still] })]);
    const text = textOf(drawn).replace(/ +/g, " ");
    for (const part of [
      "vllm 0.26.0 ready 0/0 · 50, 0/1 · 51 http://gpu-1:8000 21 ms 19 ms 120",
      "vllm 0.26.0 gone 0/0 · 50, 0/1 · 51 gpu-1 – – –",
      "Engine vllm e-1 stands still: Ranks differ.",
    ])
      expect(text).toContain(part);
    expect(textOf(fleetCards([fleetView()]))).not.toContain("Engine");
  });

  it("names those that wait first, and counts the rest", () => {
    const queued_reload_ids = ["a", "b", "c", "d", "e"];
    expect(textOf(fleetCards([fleetView({ queued_reload_ids })])).replace(/ +/g, " ")).toContain(
      "5 reloads waiting: a b c and 2 more",
    );
  });
});
