// Staging has one owner: the ledger's transitions as laws (P2, P4).

import { describe, expect, it } from "vitest";
import type { Held } from "../../orchestrator/fleet/state.js";
import {
  adoptUndo,
  newLedger,
  type Owner,
  open,
  prepare,
  release,
  requireOpen,
  requirePrepared,
  swapped,
} from "../../worker/ledger.js";

const held = (reload: string): Held => ({
  reload,
  content: reload,
  weightVersion: reload,
  epoch: 1,
  layoutDigest: "l",
});
const owner = (reload: string, epoch: number, content = reload): Owner => ({ reload, epoch, content });
const refused = (code: string) => expect.objectContaining({ code });

function preparedBy(by: Owner, generation = 4) {
  return prepare(open(newLedger(0), by), by, { digest: 13n, generation, spans: null });
}

describe("opening", () => {
  it("by a lower epoch is refused, by a higher one takes over, and the one before may not write", () => {
    const first = open(newLedger(0), owner("a", 5));
    expect(() => open(first, owner("late", 4))).toThrow(refused("stale_job"));
    const second = open(first, owner("b", 6));
    expect(requireOpen(second, owner("b", 6)).owner).toEqual(owner("b", 6));
    expect(() => requireOpen(second, owner("a", 5))).toThrow(refused("stale_job"));
  });

  it("again by its owner changes nothing", () => {
    const by = owner("a", 1);
    const ledger = open(newLedger(0), by);
    expect(open(ledger, by)).toBe(ledger);
  });

  it("destroys undo", () => {
    const ledger = swapped(preparedBy(owner("b", 2)), { held: held("a"), digest: 7n, spans: null });
    expect(ledger.staging.kind).toBe("undo");
    expect(open(ledger, owner("c", 3)).staging).toMatchObject({ kind: "open" });
  });
});

describe("preparing", () => {
  it("is for the owner that staging is open for", () => {
    const open5 = open(newLedger(0), owner("a", 5));
    const all = { digest: 1n, generation: 0, spans: null };
    expect(() => prepare(open5, owner("late", 4), all)).toThrow(refused("stale_job"));
    expect(() => prepare(newLedger(0), owner("a", 5), all)).toThrow(refused("not_prepared"));
  });

  it("closes staging: nothing more can be written", () => {
    const by = owner("a", 1);
    expect(() => requireOpen(preparedBy(by), by)).toThrow(refused("not_prepared"));
  });
});

describe("swapping", () => {
  it("is for the reload, epoch and arena generation that was prepared, and no other", () => {
    const ledger = preparedBy(owner("a", 1), 4);
    expect(requirePrepared(ledger, owner("a", 1), 4).digest).toBe(13n);
    expect(() => requirePrepared(ledger, owner("a", 2), 4)).toThrow(refused("not_prepared"));
    expect(() => requirePrepared(ledger, owner("b", 1), 4)).toThrow(refused("not_prepared"));
    expect(() => requirePrepared(ledger, owner("a", 1), 6)).toThrow(refused("not_prepared"));
  });

  it("done twice finds nothing prepared the second time", () => {
    const by = owner("a", 1);
    const ledger = swapped(preparedBy(by), null);
    expect(() => requirePrepared(ledger, by, 4)).toThrow(refused("not_prepared"));
  });
});

describe("rolling back", () => {
  const undo = { held: held("a"), digest: 7n, spans: null };

  it("adopts undo that holds the very content, without a write", () => {
    const ledger = adoptUndo(swapped(preparedBy(owner("b", 2)), undo), owner("back", 3, "a"), 6);
    expect(ledger?.staging).toMatchObject({ kind: "prepared", digest: 7n, spans: null });
    expect(adoptUndo(swapped(preparedBy(owner("b", 2)), undo), owner("back", 3, "x"), 6)).toBeNull();
  });

  it("cancelled before the decision leaves undo undo; a reload given up leaves nothing", () => {
    const adopted = adoptUndo(swapped(preparedBy(owner("b", 2)), undo), owner("back", 3, "a"), 6);
    expect(adopted === null ? null : release(adopted).staging).toEqual({ kind: "undo", ...undo });
    expect(release(preparedBy(owner("b", 2))).staging).toEqual({ kind: "closed" });
  });
});
