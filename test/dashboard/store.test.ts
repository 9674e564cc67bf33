import { beforeEach, describe, expect, it } from "vitest";
import {
  attachedEngine,
  committedView,
  fleetView,
  pushView,
  rankProgress,
  rankPush,
  reloadView,
} from "../routes/fake-reloads.js";
import { dashboard } from "./modules.js";

const store = await dashboard("store.js");
const { news, standing, titleOf } = await dashboard("words.js");

let known: Awaited<ReturnType<typeof store.openStore>>;
beforeEach(() => {
  known = store.openStore();
});
const reload = (id = "rl-1") => known.entries.get(id).reload;
const event = (name: string, payload: unknown, id = "1700000000000-0") => ({ id, name, payload });
const summaryOf = (view = reloadView()) => ({ ...view, ranks: [], layers: [], push: null });

describe("one reload has one state", () => {
  it("an answer that is older than an event does not take the state back, in the card, the list or the fleet", () => {
    store.takeRecord(known, reloadView({ state: "committing" }), true);
    const mark = store.markOf(known);
    expect(store.takeEvent(known, "rl-1", event("state", { state: "committed", epoch: 1, error: null }))).toBe(true);
    const ranks = fleetView().ranks.map((rank) => ({ ...rank, epoch: 0 }));
    store.takeFleets(known, [fleetView({ weight_version: "119", active_reload_id: "rl-1", ranks })], mark);
    store.takeRecord(known, summaryOf(reloadView({ state: "finalizing" })), false);
    expect(reload().state).toBe("committed");
    expect(store.shownCards(known).map((card: { reload: unknown }) => card.reload)).toEqual([reload()]);
    const [fleet] = store.shownFleets(known);
    expect(fleet).toMatchObject({ weight_version: "120", active_reload_id: null });
    expect(fleet.ranks.map((rank: { weight_version: string }) => rank.weight_version)).toEqual(["120", "120"]);
  });

  it("fleets that were asked for after it ended are shown as they are", () => {
    store.takeRecord(known, reloadView(), true);
    store.takeRecord(known, committedView(), true);
    store.takeFleets(known, [fleetView({ weight_version: "back at 119" })], store.markOf(known));
    expect(store.shownFleets(known)[0].weight_version).toBe("back at 119");
  });

  it("old reloads that are read for the list change no fleet", () => {
    const mark = store.markOf(known);
    store.takeRecord(known, committedView({ epoch: 9 }), false);
    store.takeFleets(known, [fleetView()], mark);
    expect(store.shownFleets(known)[0].weight_version).toBe("119");
  });

  it("a summary takes away no rank, layer or push that is known", () => {
    store.takeRecord(known, reloadView({ push: pushView }), true);
    store.takeRecord(known, summaryOf(committedView()), false);
    expect(reload()).toMatchObject({ state: "committed", push: pushView, layers: reloadView().layers });
    expect(reload().ranks).toHaveLength(2);
  });

  it("a replayed event does not take a rank back, a new process of that rank does", () => {
    store.takeRecord(known, reloadView({ ranks: [rankProgress(0, { layers_done: 5, push: rankPush })] }), true);
    store.takeEvent(known, "rl-1", event("progress", rankProgress(0, { layers_done: 2, push: rankPush })));
    expect(reload().ranks[0].layers_done).toBe(5);
    store.takeEvent(known, "rl-1", event("progress", rankProgress(0, { incarnation: "next", layers_done: 0 })));
    expect(reload().ranks[0].layers_done).toBe(0);
  });

  it("the record of the end says all", () => {
    store.takeRecord(known, reloadView(), true);
    store.takeEvent(known, "rl-1", event("progress", rankProgress(0, { bytes_read: 9e9 })));
    store.takeRecord(known, committedView(), true);
    expect(reload()).toEqual(committedView());
  });
});

describe("the cards", () => {
  const cards = () => store.shownCards(known).map((card: { reload: { reload_id: string } }) => card.reload.reload_id);
  const made = (second: number) => ({ created_at: `2026-01-01T00:00:0${second}.000Z` });

  it("what ran last stays until the next one runs; what ended before the page was opened has none", () => {
    store.takeRecord(known, committedView({ reload_id: "old", ...made(0) }), false);
    expect(cards()).toEqual([]);
    store.takeRecord(known, reloadView({ reload_id: "one", ...made(1) }), true);
    store.takeRecord(known, committedView({ reload_id: "one", ...made(1) }), true);
    store.takeRecord(known, reloadView({ reload_id: "two", state: "queued", ...made(2) }), false);
    expect(cards()).toEqual(["one"]);
    store.takeRecord(known, reloadView({ reload_id: "two", ...made(2) }), true);
    expect(cards()).toEqual(["two"]);
  });
});

describe("a reload that runs between two answers", () => {
  it("has a card all the same, unlike those that are older or were replaced", () => {
    const at = (second: number) => ({ created_at: `2026-01-01T00:00:0${second}.000Z` });
    const old = committedView({ reload_id: "old", ...at(1) });
    store.takeNewestPage(known, [old]);
    store.takePage(known, [committedView({ reload_id: "older", ...at(0) })]);
    expect(store.shownCards(known)).toEqual([]);
    const quick = committedView({ reload_id: "quick", ...at(2) });
    const replaced = reloadView({ reload_id: "replaced", state: "superseded", ...at(3) });
    const ranks = fleetView().ranks.map((rank) => ({ ...rank, epoch: 0 }));
    store.takeFleets(known, [fleetView({ weight_version: "119", ranks })], store.markOf(known));
    store.takeNewestPage(known, [replaced, quick, old]);
    expect(store.shownFleets(known)[0].weight_version).toBe("120");
    expect(store.shownCards(known).map((card: { reload: unknown }) => card.reload)).toMatchObject([
      { reload_id: "quick" },
    ]);
  });
});

describe("a push", () => {
  it("counts rows received by the elements in them, a scalar as one row", () => {
    store.takeRecord(known, reloadView({ push: pushView }), true);
    store.takeTensors(known, "rl-1", [
      { shape: [4, 10], rows_received: 1 },
      { shape: [], rows_received: 1 },
      { shape: [0, 3], rows_received: 0 },
    ]);
    expect(known.entries.get("rl-1").sent).toEqual({ elements: 11, of: 41, tensors: 2, ofTensors: 3 });
  });
});

describe("the title and the live region", () => {
  it("tell what runs, else what is wrong, and of a page its reload", () => {
    store.takeFleets(known, [fleetView({ routable: false })], 0);
    expect(titleOf(known, null)).toBe("not routable · Layercast");
    store.takeRecord(known, reloadView({ state: "committing" }), true);
    expect(titleOf(known, null)).toBe("committing · Layercast");
    expect(titleOf(known, "rl-1")).toBe("committing · 120 · Layercast");
    store.takeFleets(known, [fleetView()], 1);
    store.takeRecord(known, committedView(), true);
    expect(titleOf(known, null)).toBe("Layercast");
  });

  it("say that an engine has gone", () => {
    store.takeFleets(known, [fleetView({ attached_engines: [attachedEngine()] })], 1);
    const before = standing(known);
    store.takeFleets(known, [fleetView({ attached_engines: [attachedEngine({ state: "gone" })] })], 2);
    expect(news(before, standing(known))).toEqual(["Fleet default: routable, 1 of its engines gone."]);
  });

  it("say each change once, and nothing of what is there at first", () => {
    store.takeRecord(known, reloadView(), true);
    const before = standing(known);
    expect(news(new Map(), before)).toEqual([]);
    store.takeRecord(known, committedView(), true);
    expect(news(before, standing(known))).toEqual(["Reload rl-1 to 120: committed."]);
    expect(news(standing(known), standing(known))).toEqual([]);
  });
});
