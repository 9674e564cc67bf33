// The one owner of a rank's staging at work (P2, P4): opens it for a reload, lets writes in while it is open, closes it when
// all is there, swaps. Opening, preparing and swapping shut the gate first and wait until no native write is in flight.

import type { LayerReport, NativeCore, Span } from "../native/native.js";
import { LayercastError } from "../orchestrator/contract/errors.js";
import { faultDuring, faultPoint } from "../orchestrator/fault-point.js";
import type { ResolvedProgram } from "../orchestrator/planner/make-program.js";
import { createResolver, type Resolve } from "../orchestrator/planner/resolve.js";
import type { LoadedPlan } from "../orchestrator/reloads/plan-store.js";
import { type Held, isLive } from "../orchestrator/reloads/protocol/state.js";
import type { EngineGate } from "./engines/run-lock.js";
import { explainHostError, explainNativeError } from "./explain-native-error.js";
import {
  addDigests,
  adoptUndo,
  digestFromHex,
  digestToHex,
  isOwner,
  type Ledger,
  missingLayers,
  newLedger,
  type Owner,
  open,
  prepare,
  preparePushed,
  recordFinalized,
  recordLayer,
  release,
  requireOpen,
  requirePrepared,
  swapped,
} from "./ledger.js";
import { callDeadlineMs, type NativeWork } from "./native-work.js";
import type { Destination, RankArena } from "./rank-arena.js";

export interface RankStaging {
  ledger(): Ledger;
  /** Opens staging for the owner unless it has it; what another had there is gone. */
  open(owner: Owner, plan: LoadedPlan, mode: "staged" | "in_place"): Promise<void>;
  /** Layers not staged yet. */
  missing(owner: Owner, plan: LoadedPlan): number[];
  /** Stages one layer; null when it is there already. */
  loadLayer(owner: Owner, plan: LoadedPlan, layer: number): Promise<LayerReport | null>;
  /** The rank barrier has fallen: stages what waited for it, then closes staging. */
  finalize(owner: Owner, plan: LoadedPlan): Promise<void>;
  /** Runs a program while staging is open for the owner; `what` is the work, such as "layer model.layers.7". */
  run(owner: Owner, plan: LoadedPlan, resolved: ResolvedProgram, what: string): Promise<LayerReport>;
  /** Closes staging over what was pushed: `digest` is of what was written to these spans (null: to all). */
  closePushed(owner: Owner, digest: bigint, spans: Span[] | null): Promise<void>;
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
  let resolver: { mappingDigest: string; resolve: Resolve } | null = null;
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

  function resolverOf(plan: LoadedPlan, target: Destination["target"]): Resolve {
    if (resolver?.mappingDigest !== plan.mappingDigest) {
      resolver = { mappingDigest: plan.mappingDigest, resolve: createResolver(plan.layout, target.layout) };
    }
    return resolver.resolve;
  }

  async function makeRoom(plan: LoadedPlan, mode: "staged" | "in_place"): Promise<Destination> {
    const { layout, layoutDigest, stagingPlace } = plan;
    try {
      return await arena.makeDestination(layout, layoutDigest, mode, stagingPlace);
    } catch (error) {
      throw explainHostError(error, `the arena of layout ${layoutDigest.slice(0, 12)}`);
    }
  }

  /** Runs a program while staging is open for the owner. */
  async function write(
    { owner, plan, what, phase }: { owner: Owner; plan: LoadedPlan; what: string; phase: "layer" | "finalize" },
    resolve: (target: Destination["target"]) => ResolvedProgram,
  ): Promise<LayerReport> {
    await gateOpen();
    requireOpen(ledger, owner);
    const { target, half } = requireDestination(destination);
    const resolved = resolve(target);
    try {
      return await work.run(what, callDeadlineMs(resolved.bytes), (cancel) =>
        faultDuring(core.runLayer(target.arena, half, resolved.program, cancel), `worker.${phase}_running`, scope),
      );
    } catch (error) {
      throw explainNativeError(error, plan, resolved, what);
    }
  }

  function writeLayers(
    owner: Owner,
    plan: LoadedPlan,
    layers: number[],
    phase: "layer" | "finalize",
  ): Promise<LayerReport> {
    const { source, allowNonFinite } = plan;
    const what = `${phase} ${layers.map((layer) => plan.layout.layers[layer]?.name).join(", ")}`;
    return write({ owner, plan, what, phase }, (target) =>
      resolverOf(plan, target)(source, { layers, rank, phase, allowNonFinite }),
    );
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
    missing: (owner, plan) => missingLayers(ledger, owner, plan.layout.layers.length),
    async open(owner, plan, mode) {
      if (isOwner(ledger.staging, owner)) return;
      const opened = open(ledger, owner);
      work.cancelAll();
      await exclusively(async () => {
        if (isOwner(ledger.staging, owner)) return;
        refuseLive(arena, owner);
        ledger = { staging: { kind: "closed" }, highestEpoch: owner.epoch };
        destination = await makeRoom(plan, mode);
        // Odd from here on, which no engine computes with (P14).
        if (destination.mode === "live")
          await engines.whileStill(owner, async () => arena.beginSwap(owner.epoch, owner.reload));
        ledger = opened;
      });
    },
    async loadLayer(owner, plan, layer) {
      if (requireOpen(ledger, owner).layers.has(layer)) return null;
      const report = await writeLayers(owner, plan, [layer], "layer");
      ledger = recordLayer(ledger, owner, layer, digestFromHex(report.digest));
      return report;
    },
    async finalize(owner, plan) {
      const all = plan.layout.layers.map((_, layer) => layer);
      const report = await writeLayers(owner, plan, all, "finalize");
      await exclusively(() => {
        ledger = recordFinalized(ledger, owner, digestFromHex(report.digest));
        ledger = prepare(ledger, owner, all.length, arena.page().generation);
      });
    },
    run: (owner, plan, resolved, what) => write({ owner, plan, what, phase: "layer" }, () => resolved),
    closePushed: (owner, written, spans) =>
      exclusively(async () => {
        requireOpen(ledger, owner);
        const digest = await digestAfter(written, spans);
        ledger = preparePushed(ledger, owner, { digest, generation: arena.page().generation, spans });
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
        if (isOwner(ledger.staging, owner)) ledger = release(ledger);
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
