// The engines of one rank, put together: what they say over their links becomes leases, which the fleet is told; a swap stops their
// cores, and the run lock proves that they stand still (P14). Nothing here waits for Redis while an engine stands still.

import type { Logger } from "pino";
import type { NativeCore } from "../../native/native.js";
import type { EngineLease } from "../../orchestrator/contract/engines.js";
import { LayercastError } from "../../orchestrator/contract/errors.js";
import type { RankKey } from "../../orchestrator/contract/jobs.js";
import { reportEngines } from "../../orchestrator/fleet/engine-leases.js";
import type { FleetStore } from "../../orchestrator/fleet/fleet-store.js";
import type { PlanStore } from "../../orchestrator/fleet/plan-store.js";
import type { FleetState } from "../../orchestrator/fleet/state.js";
import type { RankArena } from "../rank-arena.js";
import {
  admitted,
  aged,
  becameReady,
  connected,
  coresOf,
  disconnected,
  type Engines,
  engineOf,
  inherited,
  type LinkId,
  namesOf,
  ranAgain,
  reportsOf,
  requireFitting,
  stateOf,
  troubled,
} from "./leases.js";
import type { LinkServer, LinkServerOptions } from "./link-server.js";
import { type EngineMessage, type Hello, LINK_VERSION } from "./messages.js";
import { type EngineGate, openRunLock } from "./run-lock.js";

export const LOCK_NAME = "running.lock";

export interface RankEngines extends EngineGate {
  /** As the fleet was told last, for a registration to tell again; null: it was told nothing yet. */
  leases(): EngineLease[] | null;
  close(): void;
}

export interface RankEnginesOptions {
  core: NativeCore;
  arena: Pick<RankArena, "page" | "liveState">;
  store: FleetStore;
  plans: Pick<PlanStore, "layout">;
  fleet: string;
  key: RankKey;
  rank: number;
  tensorParallelSize: number;
  incarnation: string;
  lockPath: string;
  log: Logger;
  clock: { now(): number; delay(ms: number): Promise<unknown>; every(ms: number, call: () => void): () => void };
  openLinks(handlers: Pick<LinkServerOptions, "onMessage" | "onEnd">): Promise<LinkServer>;
}

/** Who waits is looked at again, and what Redis would not take is told again. */
const LOOK_EVERY_MS = 250;

/** What one look at the fleet has found out. */
interface Told {
  leases: EngineLease[];
  before: EngineLease[];
}

export async function openRankEngines(options: RankEnginesOptions): Promise<RankEngines> {
  const { core, arena, store, plans, fleet, key, incarnation, lockPath, log, clock } = options;
  let engines: Engines = [];
  /** What the fleet was told last; null: nothing by this worker yet. */
  let told: EngineLease[] | null = null;
  let looking: Promise<void> | null = null;
  let isFailing = false;
  let isClosed = false;
  let recipe: { layoutDigest: string; name: string } | null = null;
  /** The swap for which cores are to stand still: one that calls meanwhile is told too. */
  let open: { epoch: number; reload: string } | null = null;

  const links = await options.openLinks({ onMessage: handle, onEnd });
  const gate = openRunLock({
    ...{ core, path: lockPath, clock },
    links: {
      stop(epoch, reload) {
        open = { epoch, reload };
        for (const link of coresOf(engines)) links.send(link, { stop: epoch, reload });
      },
      go(epoch) {
        open = null;
        for (const link of coresOf(engines)) links.send(link, { go: epoch });
      },
      names: () => namesOf(engines),
    },
  });

  function handle(link: LinkId, message: EngineMessage): void {
    if (message.kind === "hello") greet(link, message.hello);
    else if (message.kind === "ready") engines = becameReady(engines, link);
    else if (message.kind === "running") engines = ranAgain(engines, link, message.running);
    else if (message.kind === "trouble") engines = troubled(engines, link, message.trouble);
    look();
  }

  function greet(link: LinkId, hello: Hello): void {
    try {
      requireFitting(engines, hello, options);
    } catch (error) {
      if (!(error instanceof LayercastError)) throw error;
      log.warn({ engine: hello.engine, pid: hello.pid }, `an engine is refused: ${error.message}`);
      links.end(link, { refused: error.code, message: error.message });
      return;
    }
    const replaced = engines.find(({ id }) => id === hello.engine)?.links[hello.role] ?? null;
    engines = connected(engines, link, hello);
    if (replaced !== null) links.end(replaced.id, null);
    log.info({ engine: hello.engine, role: hello.role, pid: hello.pid, state: hello.state }, "an engine says hello");
    if (engineOf(engines, link)?.isAdmitted) welcome(link);
  }

  function welcome(link: LinkId): void {
    const { epoch, weightVersion, layoutDigest, state } = arena.page();
    const weight_version = state === "empty" ? null : weightVersion;
    const known = recipe?.layoutDigest === layoutDigest ? recipe.name : null;
    links.send(link, { welcome: LINK_VERSION, epoch, weight_version, recipe: known });
    if (open !== null && coresOf(engines).includes(link)) links.send(link, { stop: open.epoch, reload: open.reload });
  }

  function onEnd(link: LinkId): void {
    const engine = engineOf(engines, link);
    if (engine === null) return; // it has called again
    log.info({ engine: engine.id }, "a link of an engine is over");
    engines = disconnected(engines, link, clock.now());
    look();
  }

  function isTold(): boolean {
    if (told === null) return false;
    return JSON.stringify(reportsOf(engines)) === JSON.stringify(told.map(({ since: _, ...report }) => report));
  }

  /** One look after the other; what happens during one is told by the next. */
  function look(): void {
    engines = aged(engines, clock.now());
    const isWaiting = engines.some((engine) => stateOf(engine) === "waiting");
    if (isClosed || looking !== null || (isTold() && !isWaiting)) return;
    looking = lookOnce().then(
      () => {
        isFailing = false;
        looking = null;
        if (told !== null && !isTold()) look();
      },
      (error: unknown) => {
        if (!isFailing) log.warn({ err: error }, "engines could not be reported; it is tried again until it works");
        isFailing = true;
        looking = null;
      },
    );
  }

  async function lookOnce(): Promise<void> {
    if (told === null && !(await isRegistered())) return;
    const { result } = await store.transact(fleet, (draft, { now }) => tell(draft, now));
    if (result === null) return; // another incarnation is registered: this process is about to end
    engines = inherited(engines, result.before, clock.now());
    const { leases } = result;
    told = leases;
    const isIn = (id: string) => leases.some((lease) => lease.id === id && lease.state !== "waiting");
    const letIn = engines.filter((engine) => !engine.isAdmitted && stateOf(engine) === "waiting" && isIn(engine.id));
    if (letIn.length === 0) return;
    await learnRecipe();
    const ids = letIn.map(({ id }) => id);
    engines = admitted(engines, ids);
    for (const { id, links: both } of engines) {
      if (!ids.includes(id)) continue;
      for (const link of [both.rank, both.core]) if (link !== null) welcome(link.id);
    }
  }

  async function isRegistered(): Promise<boolean> {
    const known = await store.readOutline(fleet);
    return known?.state.ranks[key]?.incarnation === incarnation;
  }

  function tell(draft: FleetState, now: number): Told | null {
    const rank = draft.ranks[key];
    if (rank?.incarnation !== incarnation) return null;
    const before = told === null ? (rank.engines ?? []) : [];
    const reports = reportsOf(inherited(engines, before, clock.now()));
    return { before, leases: reportEngines(draft, key, incarnation, reports, now) };
  }

  async function learnRecipe(): Promise<void> {
    const { layoutDigest } = arena.page();
    if (recipe?.layoutDigest === layoutDigest) return;
    const layout = await plans.layout(layoutDigest).catch(() => null);
    if (layout !== null) recipe = { layoutDigest, name: layout.scheme };
  }

  const stopLooking = clock.every(LOOK_EVERY_MS, look);
  return {
    ...gate,
    leases: () => told,
    close() {
      isClosed = true;
      stopLooking();
      links.close();
    },
  };
}
