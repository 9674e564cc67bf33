// The one owner of a rank's staging at work (P2, P4): opens it for a reload, lets writes in while it is open, closes it when
// all is there, swaps. Opening, preparing and swapping shut the gate first and wait until no native write is in flight.

import type { Cancel, LayerReport, NativeCore, Span } from "../native/native.js";
import { LayercastError } from "../orchestrator/contract/errors.js";
import type { ReloadPlan } from "../orchestrator/fleet/plan-store.js";
import { type Held, isLive } from "../orchestrator/fleet/state.js";
import { faultDuring, faultPoint } from "../orchestrator/host/fault-point.js";
import type { ResolvedProgram } from "../orchestrator/program/make-program.js";
import type { EngineGate } from "./engines/run-lock.js";
import { explainHostError, explainNativeError } from "./explain-native-error.js";
import type { Intake } from "./intake/intake.js";
import { keepIntakes } from "./intake/intakes.js";
import {
  addDigests,
  adoptUndo,
  digestFromHex,
  digestToHex,
  isOwner,
  type Ledger,
  newLedger,
  type Owner,
  open,
  prepare,
  release,
  requireOpen,
  requirePrepared,
  swapped,
} from "./ledger.js";
import { callDeadlineMs, type NativeWork } from "./native-work.js";
import type { Destination, RankArena } from "./rank-arena.js";

export interface RankStaging {
  ledger(): Ledger;
  /** Opens staging for the owner, with nothing in it, unless the owner has it; what another had there is gone. */
  open(owner: Owner, plan: ReloadPlan, mode: "staged" | "in_place"): Promise<void>;
  /** What is in it, while it is open for the owner. Throws `not_prepared` when it is not. */
  intake(owner: Owner): Intake;
  /** Runs a program while staging is open for the owner. */
  run(owner: Owner, plan: ReloadPlan, resolved: ResolvedProgram, what: Work): Promise<LayerReport>;
  /** The rank barrier has fallen, and all is in: `digest` is of what was written to these spans (null: to all). */
  close(owner: Owner, digest: bigint, spans: Span[] | null): Promise<void>;
  /** Takes undo for prepared when it holds the owner's content. */
  adopt(owner: Owner): Promise<boolean>;
  /** The token's facts, when prepared by the owner. */
  prepared(owner: Owner): { digest: string; generation: number } | null;
  /** Makes the prepared bytes live; the ones before become undo. Returns how long it took. */
  swap(owner: Owner, held: Held): Promise<number>;
  /** Gives up what an ended reload has staged, and stops what still runs for it. */
  release(owner: Owner): Promise<void>;
  /** Runs while nothing can be swapped. */
  whileStanding<Result>(run: () => Promise<Result>): Promise<Result>;
}

interface Work {
  /** Such as "layer model.layers.7". */
  name: string;
  phase: "layer" | "finalize";
}

export interface StagingOptions {
  core: NativeCore;
  arena: RankArena;
  work: NativeWork;
  engines: EngineGate;
  rank: number;
  /** "0-1", for the fault points. */
  scope?: string;
}

export function openStagingOwner({ core, arena, work, engines, rank, scope = "" }: StagingOptions): RankStaging {
  // The page's epoch, even where nothing vouches for the bytes: no later reload may have the same.
  let ledger = newLedger(arena.page().epoch);
  let destination: Destination | null = null;
  const intakes = keepIntakes(core, rank);
  let gate: Promise<void> = Promise.resolve();
  let shut = 0;

  /** One at a time, with the gate shut and no write in flight. */
  function exclusively<Result>(run: () => Result | Promise<Result>): Promise<Result> {
    shut += 1;
    const before = gate;
    const result = before.then(() => work.drained()).then(run);
    gate = result.then(
      () => void shut--,
      () => void shut--,
    );
    return result;
  }

  async function gateOpen(): Promise<void> {
    while (shut > 0) await gate;
  }

  async function makeRoom(plan: ReloadPlan, mode: "staged" | "in_place"): Promise<Destination> {
    const { layout, layoutDigest, stagingPlace } = plan;
    try {
      return await arena.makeDestination(layout, layoutDigest, mode, stagingPlace);
    } catch (error) {
      throw explainHostError(error, `the arena of layout ${layoutDigest.slice(0, 12)}`);
    }
  }

  async function write(owner: Owner, plan: ReloadPlan, resolved: ResolvedProgram, what: Work): Promise<LayerReport> {
    await gateOpen();
    requireOpen(ledger, owner);
    const { target, half } = requireDestination(destination);
    const run = (cancel: Cancel) =>
      faultDuring(core.runLayer(target.arena, half, resolved.program, cancel), `worker.${what.phase}_running`, scope);
    try {
      const report = await work.run(what.name, callDeadlineMs(resolved.bytes), run);
      requireOpen(ledger, owner); // what was written for another is counted nowhere
      return report;
    } catch (error) {
      throw explainNativeError(error, plan, resolved, what.name);
    }
  }

  /** Of all bytes that will be live once these spans, of which `written` is the digest, have been exchanged. */
  async function digestAfter(written: bigint, spans: Span[] | null): Promise<bigint> {
    if (spans === null) return written;
    const { target, half } = requireDestination(destination);
    if (half === "live")
      return digestFromHex(await core.digest(target.arena, half, spansOf(target), core.createCancel()));
    const replaced = digestFromHex(await core.digest(target.arena, "live", spans, core.createCancel()));
    return addDigests(addDigests(digestFromHex(arena.page().digest), -replaced), written);
  }

  return {
    ledger: () => ledger,
    async open(owner, plan, mode) {
      if (isOwner(ledger.staging, owner)) return;
      const opened = open(ledger, owner);
      work.cancelAll();
      await exclusively(async () => {
        if (isOwner(ledger.staging, owner)) return;
        refuseLive(arena, owner);
        ledger = { staging: { kind: "closed" }, highestEpoch: owner.epoch };
        intakes.drop();
        destination = await makeRoom(plan, mode);
        // Odd from here on, which no engine computes with (P14).
        if (destination.mode === "live")
          await engines.whileStill(owner, async () => arena.beginSwap(owner.epoch, owner.reload));
        intakes.open(owner, plan);
        ledger = opened;
      });
    },
    intake(owner) {
      requireOpen(ledger, owner);
      const intake = intakes.current(owner);
      if (intake === null)
        throw new LayercastError("internal", "staging is open, yet nothing is known of what is in it");
      return intake;
    },
    run: write,
    close: (owner, written, spans) =>
      exclusively(async () => {
        requireOpen(ledger, owner);
        const digest = await digestAfter(written, spans);
        ledger = prepare(ledger, owner, { digest, generation: arena.page().generation, spans });
        intakes.drop();
      }),
    adopt: (owner) =>
      exclusively(() => {
        const adopted = adoptUndo(ledger, owner, arena.page().generation);
        const target = arena.standing();
        if (adopted === null || target === null) return false;
        destination = { target, half: "staging", mode: "staging" };
        ledger = adopted;
        return true;
      }),
    prepared(owner) {
      const { staging } = ledger;
      if (staging.kind !== "prepared" || !isOwner(staging, owner)) return null;
      return { digest: digestToHex(staging.digest), generation: staging.generation };
    },
    swap: (owner, held) =>
      exclusively(async () => {
        const { target, mode } = requireDestination(destination);
        const { digest, spans } = requirePrepared(ledger, owner, arena.page().generation);
        return engines.whileStill(owner, async () => {
          const before = arena.liveState();
          const beforeDigest = digestFromHex(arena.page().digest);
          const startedAt = performance.now();
          arena.beginSwap(owner.epoch, owner.reload);
          await faultPoint("worker.swap_begun", scope);
          if (mode === "staging") await faultDuring(exchange(core, target, spans), "worker.exchanging", scope);
          if (mode === "next") arena.takeOver(target);
          await faultPoint("worker.exchanged", scope);
          arena.endSwap(target, held, digestToHex(digest));
          const undo =
            mode === "staging" && before.held !== null ? { held: before.held, digest: beforeDigest, spans } : null;
          ledger = swapped(ledger, undo);
          return performance.now() - startedAt;
        });
      }),
    async release(owner) {
      if (!isOwner(ledger.staging, owner)) return;
      work.cancelAll();
      await exclusively(() => {
        if (!isOwner(ledger.staging, owner)) return;
        ledger = release(ledger);
        intakes.drop();
      });
    },
    whileStanding: (run) => exclusively(run),
  };
}

/** A job that Redis gives out again because it has forgotten the swap: to write in place now would tear what is live. */
function refuseLive(arena: RankArena, { reload, content, epoch }: Owner): void {
  if (!isLive({ live: arena.liveState() }, { content, epoch })) return;
  throw new LayercastError("stale_job", `reload ${reload} (epoch ${epoch}) is live on this rank already`, {
    reload,
    epoch,
  });
}

/** Once begun an exchange is not stopped: half exchanged is neither the old nor the new. */
async function exchange(
  core: NativeCore,
  { arena, layout }: Destination["target"],
  spans: Span[] | null,
): Promise<void> {
  await core.exchange(arena, spans ?? spansOf({ layout }), core.createCancel());
}

/** Of all its tensors. */
function spansOf({ layout }: Pick<Destination["target"], "layout">): Span[] {
  return layout.tensors.filter(({ bytes }) => bytes > 0).map(({ offset, bytes }) => ({ offset, bytes }));
}

function requireDestination(destination: Destination | null): Destination {
  if (destination === null) throw new LayercastError("internal", "staging has no destination, yet it is open");
  return destination;
}
