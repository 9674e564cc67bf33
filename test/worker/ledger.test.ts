// Staging has one owner: the ledger's transitions as laws (P2, P4).

import { describe, expect, it } from "vitest";
import type { Held } from "../../orchestrator/reloads/protocol/state.js";
import {
  adoptUndo,
  digestFromHex,
  digestToHex,
  missingLayers,
  newLedger,
  type Owner,
  open,
  prepare,
  recordFinalized,
  recordLayer,
  release,
  requirePrepared,
  swapped,
} from "../../worker/ledger.js";

const LAYERS = 2;
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
  let ledger = open(newLedger(0), by);
  for (let layer = 0; layer < LAYERS; layer++) ledger = recordLayer(ledger, by, layer, BigInt(layer + 1));
  return prepare(recordFinalized(ledger, by, 10n), by, LAYERS, generation);
}

describe("opening", () => {
  it("by a lower epoch is refused, by a higher one takes over with nothing in it", () => {
    const first = recordLayer(open(newLedger(0), owner("a", 5)), owner("a", 5), 0, 1n);
    expect(() => open(first, owner("late", 4))).toThrow(refused("stale_job"));
    const second = open(first, owner("b", 6));
    expect(missingLayers(second, owner("b", 6), LAYERS)).toEqual([0, 1]);
    expect(() => recordLayer(second, owner("a", 5), 1, 1n)).toThrow(refused("stale_job"));
  });

  it("again by its owner keeps what is staged", () => {
    const by = owner("a", 1);
    const ledger = recordLayer(open(newLedger(0), by), by, 0, 1n);
    expect(missingLayers(open(ledger, by), by, LAYERS)).toEqual([1]);
  });

  it("destroys undo", () => {
    const ledger = swapped(preparedBy(owner("b", 2)), { held: held("a"), digest: 7n, spans: null });
    expect(ledger.staging.kind).toBe("undo");
    expect(open(ledger, owner("c", 3)).staging).toMatchObject({ kind: "open" });
  });
});

describe("preparing", () => {
  it("needs every layer and the finalize tensors", () => {
    const by = owner("a", 1);
    const one = recordLayer(open(newLedger(0), by), by, 0, 1n);
    expect(() => prepare(recordFinalized(one, by, 1n), by, LAYERS, 0)).toThrow(refused("not_prepared"));
    const all = recordLayer(one, by, 1, 1n);
    expect(() => prepare(all, by, LAYERS, 0)).toThrow(refused("not_prepared"));
  });

  it("sums the digests modulo 2^64, in whatever order the layers came", () => {
    const by = owner("a", 1);
    const of = (order: number[]) => {
      let ledger = open(newLedger(0), by);
      for (const layer of order) ledger = recordLayer(ledger, by, layer, layer === 0 ? 2n ** 64n - 1n : 3n);
      const { staging } = prepare(recordFinalized(ledger, by, 1n), by, LAYERS, 0);
      return staging.kind === "prepared" ? staging.digest : null;
    };
    expect(of([0, 1])).toBe(3n);
    expect(of([1, 0])).toBe(3n);
    expect(digestFromHex(digestToHex(2n ** 63n))).toBe(2n ** 63n);
  });

  it("closes staging: nothing more can be written", () => {
    const by = owner("a", 1);
    expect(() => recordLayer(preparedBy(by), by, 0, 1n)).toThrow(refused("not_prepared"));
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
