// Who owns a rank's staging, and what is in it (P2). Values and transitions, no I/O: the worker keeps one Ledger beside the
// memory it describes, so both are lost together. `closed`, `open`, `prepared` and `undo` are all that staging can be.

import type { Span } from "../native/native.js";
import { LayercastError } from "../orchestrator/contract/errors.js";
import type { Held } from "../orchestrator/fleet/state.js";

/** The reload that a write, a finalize or a swap speaks for. */
export interface Owner {
  reload: string;
  epoch: number;
  /** The reload whose plan and source give the bytes. */
  content: string;
}

/** What a swap would bring back. */
export interface Undo {
  held: Held;
  digest: bigint;
  /** Those that were exchanged; null: all. */
  spans: Span[] | null;
}

export type Staging =
  | { kind: "closed" }
  | { kind: "open"; owner: Owner }
  /** `adopted`: the undo that became the prepared bytes without a write, and is undo again if the reload ends undecided. */
  | {
      kind: "prepared";
      owner: Owner;
      /** Of all bytes that will be live. */
      digest: bigint;
      generation: number;
      /** What there is to exchange; null: all. */
      spans: Span[] | null;
      adopted: Undo | null;
    }
  | ({ kind: "undo" } & Undo);

export interface Ledger {
  staging: Staging;
  /** Lower epochs are refused: a late job of an ended reload harms nothing (P1). */
  highestEpoch: number;
}

export function newLedger(highestEpoch: number): Ledger {
  return { staging: { kind: "closed" }, highestEpoch };
}

export function isOwner(staging: Staging, { reload, epoch }: Owner): boolean {
  return "owner" in staging && staging.owner.reload === reload && staging.owner.epoch === epoch;
}

function refuseLowerEpoch(ledger: Ledger, { reload, epoch }: Owner): void {
  if (epoch >= ledger.highestEpoch) return;
  throw new LayercastError("stale_job", `reload ${reload} has epoch ${epoch}, this rank is at ${ledger.highestEpoch}`, {
    reload,
    epoch,
    highest_epoch: ledger.highestEpoch,
  });
}

/** -> open(owner) with nothing in it, unless it is that owner's already. What was there, undo included, is gone. */
export function open(ledger: Ledger, owner: Owner): Ledger {
  refuseLowerEpoch(ledger, owner);
  if (isOwner(ledger.staging, owner)) return ledger;
  return { staging: { kind: "open", owner }, highestEpoch: owner.epoch };
}

/** A write may begin only under open(owner). */
export function requireOpen(ledger: Ledger, owner: Owner): Extract<Staging, { kind: "open" }> {
  refuseLowerEpoch(ledger, owner);
  const { staging } = ledger;
  if (staging.kind === "open" && isOwner(staging, owner)) return staging;
  throw new LayercastError("not_prepared", `staging is ${staging.kind}, not open for reload ${owner.reload}`, {
    reload: owner.reload,
    staging: staging.kind,
  });
}

/**
 * open -> prepared: all is in, and nothing more can be written. `spans`: what there is to exchange; null: all of the arena.
 * `digest` is of all that will be live.
 */
export function prepare(
  ledger: Ledger,
  owner: Owner,
  { digest, generation, spans }: { digest: bigint; generation: number; spans: Span[] | null },
): Ledger {
  requireOpen(ledger, owner);
  return { ...ledger, staging: { kind: "prepared", owner, digest, generation, spans, adopted: null } };
}

/** undo -> prepared for a rollback to the very bytes that undo holds; null when it does not. */
export function adoptUndo(ledger: Ledger, owner: Owner, generation: number): Ledger | null {
  refuseLowerEpoch(ledger, owner);
  const { staging } = ledger;
  if (staging.kind !== "undo" || staging.held.content !== owner.content) return null;
  const { held, digest, spans } = staging;
  return {
    staging: { kind: "prepared", owner, digest, generation, spans, adopted: { held, digest, spans } },
    highestEpoch: owner.epoch,
  };
}

/** The swap's precondition (P4): prepared by this owner at the arena generation that still stands. */
export function requirePrepared(
  ledger: Ledger,
  owner: Owner,
  generation: number,
): Extract<Staging, { kind: "prepared" }> {
  const { staging } = ledger;
  if (staging.kind === "prepared" && isOwner(staging, owner) && staging.generation === generation) return staging;
  throw new LayercastError("not_prepared", `staging is ${staging.kind}, not prepared for reload ${owner.reload}`, {
    reload: owner.reload,
    staging: staging.kind,
    generation,
  });
}

/** prepared -> undo(what was live), or closed when nothing was or nothing can be brought back. */
export function swapped(ledger: Ledger, undo: Undo | null): Ledger {
  return { ...ledger, staging: undo === null ? { kind: "closed" } : { kind: "undo", ...undo } };
}

/** The owner's reload ended undecided: adopted bytes are undo again, half-written ones are nobody's. */
export function release(ledger: Ledger): Ledger {
  const { staging } = ledger;
  if (!("owner" in staging)) return ledger;
  const adopted = staging.kind === "prepared" ? staging.adopted : null;
  return { ...ledger, staging: adopted === null ? { kind: "closed" } : { kind: "undo", ...adopted } };
}

export function addDigests(a: bigint, b: bigint): bigint {
  return BigInt.asUintN(64, a + b);
}

export function digestFromHex(hex: string): bigint {
  return BigInt(`0x${hex}`);
}

export function digestToHex(digest: bigint): string {
  return digest.toString(16).padStart(16, "0");
}
