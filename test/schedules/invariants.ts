// What must hold after every event, and at the end of every schedule. Read from the bytes and pages of the hosts, and from what
// was written to Redis; never from what a process believes.

import { type RankKey, rankKey } from "../../orchestrator/contract/jobs.js";
import { whyNotRoutable } from "../../orchestrator/fleet/advance.js";
import type { FleetWrite } from "../../orchestrator/fleet/fleet-write.js";
import {
  expectedRanks,
  type FleetState,
  isTerminal,
  missingRanks,
  type ReloadRecord,
} from "../../orchestrator/fleet/state.js";
import { contextOf, readRecord } from "./memory-redis.js";
import { FLEET, fleetOf, forgetsLast, type Known, type Sim } from "./sim.js";

export function watch(sim: Sim): void {
  let before: FleetState | null = null;
  sim.onWrite.push((write, state) => {
    heedWrite(sim, write, state);
    checkRejoining(sim, before, state);
    before = state;
  });
  let seen = "";
  sim.world.afterEvent.push(() => {
    const { state = "" } = sim.contents.fleets.get(FLEET) ?? {};
    if (state === seen && !sim.bytesChanged) return;
    seen = state;
    sim.bytesChanged = false;
    checkRoutable(sim, fleetOf(sim));
    checkPages(sim);
  });
}

function violate(sim: Sim, words: string): void {
  sim.violations.push(words);
  sim.world.tell(`VIOLATION ${words}`);
}

function heedWrite(sim: Sim, write: FleetWrite, state: FleetState): void {
  const records = write.fields.filter(({ field }) => field === "record").map(({ value }) => JSON.parse(value));
  for (const record of records as ReloadRecord[]) {
    const known = sim.reloads.get(record.id);
    if (known === undefined) continue;
    const before = known.record?.state;
    known.record = record;
    if (record.times.signalled !== null) known.signalled = true;
    if (before === record.state) continue;
    sim.world.tell(
      `${record.id} (epoch ${record.epoch}) ${record.state}${record.error ? `: ${record.error.code}` : ""}`,
    );
    if (record.state === "committing" && before === "finalizing") checkDecided(sim, state, known);
    if (record.state === "committed") checkCommitted(sim, state, known);
    if (record.state === "failed") checkGivenUp(sim, known, record);
  }
}

/** (a) While the fleet is routable, all ranks that it waits for hold the weights that are committed. */
function checkRoutable(sim: Sim, state: FleetState | null): void {
  const committed = state?.committed ?? null;
  if (state === null || committed === null) return;
  const context = contextOf(sim.contents, FLEET, sim.redisRunId, sim.world.now);
  if (whyNotRoutable(state, context) !== null) return;
  const checkpoint = sim.reloads.get(committed.content)?.checkpoint;
  const other = expectedRanks(state).filter((key) => holds(sim, key) !== checkpoint);
  if (other.length > 0)
    violate(sim, `(a) routable with checkpoint ${checkpoint}, but ranks ${other.join(", ")} differ`);
}

/** (b) Decided is only what every rank that lives has staged, whole. */
function checkDecided(sim: Sim, state: FleetState, { id, checkpoint }: Known): void {
  const keys = expectedRanks(state);
  // A rank that shows it tells of a decision that Redis has forgotten: this is not one, but the memory of it.
  if (keys.some((key) => sim.hosts.get(key)?.pages.get("control")?.reload === id && holds(sim, key) !== null)) return;
  const other = keys.filter((key) => {
    const lives = sim.processes.get(state.ranks[key]?.incarnation ?? "")?.alive;
    return lives && !hasStaged(sim, key, checkpoint);
  });
  checkStarting(sim, state, id);
  if (other.length > 0)
    violate(sim, `(b) ${id} is decided, but ranks ${other.join(", ")} have not staged ${checkpoint}`);
}

/** (h) Nothing is decided while an engine starts, which nobody can stop then. One that stood still may have been given up. */
function checkStarting(sim: Sim, state: FleetState, reload: string): void {
  for (const { replica, isStarting, process } of sim.attached.values()) {
    const stoodStill = process.stoppedUntil > sim.world.now - LOST_AFTER_MS;
    if (!isStarting || stoodStill || state.drained[replica] !== undefined) continue;
    violate(sim, `(h) ${reload} is decided while ${process.name} is starting`);
  }
}

const LOST_AFTER_MS = 10_000;

function hasStaged(sim: Sim, key: RankKey, checkpoint: number): boolean {
  const disk = sim.hosts.get(key);
  const places = [disk?.staging, disk?.arenas.get("next.safetensors"), disk?.arenas.get("live.safetensors")];
  return places.some((place) => place?.every((number) => number === checkpoint));
}

/** A replica that joins again does not take the others out of service, if nothing else does. */
function checkRejoining(sim: Sim, before: FleetState | null, after: FleetState): void {
  if (before === null || before.redisRunId !== after.redisRunId || after.routable) return;
  const joined = Object.keys(before.drained).filter((replica) => after.drained[Number(replica)] === undefined);
  if (joined.length === 0) return;
  const context = contextOf(sim.contents, FLEET, sim.redisRunId, sim.world.now);
  const why = whyNotRoutable({ ...after, drained: { ...before.drained, ...after.drained } }, context);
  if (why === null) violate(sim, `(drain) replica ${joined.join(", ")} joined and the fleet is not routable any more`);
}

/** (d) What is said to be committed is live on all current incarnations; (e) a rollback too, with the bytes of its target. */
function checkCommitted(sim: Sim, state: FleetState, { id, checkpoint }: Known): void {
  const other = expectedRanks(state).filter((key) => holds(sim, key) !== checkpoint);
  if (other.length > 0) violate(sim, `(d) ${id} is committed, but ranks ${other.join(", ")} do not hold ${checkpoint}`);
}

/** (g) A page that says live at an even generation says what the bytes are, whoever wrote them and however late. */
function checkPages(sim: Sim): void {
  for (const [key, { pages }] of sim.hosts) {
    const page = pages.get("control");
    if (page === undefined || page.state !== "live" || page.generation % 2 === 1) continue;
    const checkpoint = sim.reloads.get(page.content)?.checkpoint;
    if (holds(sim, key) !== checkpoint) violate(sim, `(g) rank ${key} says ${page.content}, its bytes are others`);
  }
}

/** The checkpoint that all of a rank's live bytes are; null when they are a mix, torn, or none. */
function holds(sim: Sim, key: RankKey): number | null {
  const disk = sim.hosts.get(key);
  const page = disk?.pages.get("control");
  const live = disk?.arenas.get("live.safetensors");
  if (live === undefined || page === undefined || page.generation % 2 === 1) return null;
  const [first] = live;
  return first !== undefined && live.every((number) => number === first) ? first : null;
}

/** (b), (c) Live bytes change only for a reload that nothing can take back, with the decision on disk and engines at rest. */
export function heedLiveWrite(sim: Sim, key: RankKey, reload: string): void {
  const known = sim.reloads.get(reload);
  if (known === undefined) {
    violate(sim, `(b) rank ${key} changes live bytes for nobody`);
    return;
  }
  known.wroteLive = true;
  if (!known.signalled) violate(sim, `(b) rank ${key} changes live bytes for ${reload} before the signal`);
  const stored = readRecord(sim.onDisk.contents, reload);
  if (sim.options.disk === "waits" && !known.inPlace && (stored?.times.decided ?? null) === null) {
    violate(sim, `(b) rank ${key} changes live bytes for ${reload} before the decision is on disk`);
  }
  checkEngine(sim, key, reload);
}

function checkEngine(sim: Sim, key: RankKey, reload: string): void {
  const state = fleetOf(sim);
  const replica = Number(key.split("/")[0]);
  const isDriven = state?.active === reload && state.drained[replica] === undefined;
  if (!isDriven || sim.options.withHooks !== "abort" || sim.redisRunId !== "1" || state.hooks === null) return;
  if (sim.engines[replica] !== true) violate(sim, `(P12) rank ${key} changes live bytes under a running engine`);
}

/** (f) Nothing fails any more and all has ended: who can serve does, and engines stand still only before a torn fleet. */
export function checkQuiet(sim: Sim): void {
  const state = fleetOf(sim);
  if (state === null) return;
  if (state.torn) {
    checkTorn(sim, state);
    return;
  }
  if (state.engineStop !== null) violate(sim, `(P12) engines are still ${state.engineStop.phase}`);
  checkEngines(sim, state);
  const keys = expectedRanks(state);
  const held = new Set(keys.map((key) => sim.hosts.get(key)?.pages.get("control")?.reload));
  const [reload = ""] = held;
  // A replica that was drained later may be the only one that has what was committed last.
  const newest = Math.max(...[...sim.hosts.values()].map(({ pages }) => pages.get("control")?.epoch ?? 0));
  const isNewest = keys.every((key) => sim.hosts.get(key)?.pages.get("control")?.epoch === newest);
  const isGood = held.size === 1 && isNewest && sim.reloads.get(reload)?.record?.state === "committed";
  const isKnown = keys.every((key) => holds(sim, key) !== null);
  const why = whyNotRoutable(state, contextOf(sim.contents, FLEET, sim.redisRunId, sim.world.now));
  if (isGood && isKnown && why !== null) {
    violate(sim, `(f) all ranks hold the same weights and the fleet is not routable: ${why}`);
  }
}

/** (P10) Ranks that all hold what was decided are no torn fleet. */
function checkTorn(sim: Sim, state: FleetState): void {
  const context = contextOf(sim.contents, FLEET, sim.redisRunId, sim.world.now);
  const keys = expectedRanks(state);
  const isThere = missingRanks(state, context).length === 0;
  const isDecided = keys.every((key) => {
    const page = sim.hosts.get(key)?.pages.get("control");
    return page?.epoch === state.tornEpoch && holds(sim, key) !== null;
  });
  if (state.active === null && isThere && isDecided) {
    violate(sim, "(P10) every rank shows what was decided, and the fleet is torn");
  }
}

function checkEngines(sim: Sim, state: FleetState): void {
  for (let replica = 0; replica < sim.options.replicas; replica++) {
    const isOut = state.drained[replica] !== undefined;
    // They may have been forgotten where a pause could not be waited for.
    const isKept = sim.options.disk === "always" || sim.options.disk === "waits";
    if (sim.engines[replica] && !isOut && isKept)
      violate(sim, `(P12) the engine of replica ${replica} was never resumed`);
  }
}

/** Time enough for who stands still to go on, and for who is dead to come back and load. */
const TIME_TO_HEAL_MS = 40_000;

/** (P10) What was decided, and whose source is good, is not given up while nothing hinders it. */
function checkGivenUp(sim: Sim, { checkpoint }: Known, { id, times, inPlace }: ReloadRecord): void {
  if (times.signalled === null || inPlace || sim.options.disk !== "always") return;
  if (sim.goneSources.has(checkpoint) || sim.badSources.has(checkpoint)) return;
  if (sim.world.now - sim.calmSince > TIME_TO_HEAL_MS) violate(sim, `(P10) ${id} was decided, and then given up`);
}

/** (c), (f), and the next good reload: when nothing fails any more everything has ended, and the fleet serves. */
export function checkEnd(sim: Sim, lastReload: string): void {
  const state = fleetOf(sim);
  const context = contextOf(sim.contents, FLEET, sim.redisRunId, sim.world.now);
  const why = state === null ? "the fleet is gone" : whyNotRoutable(state, context);
  if (why !== null) violate(sim, `(f) not routable in the end: ${why}`);
  const last = sim.reloads.get(lastReload)?.record;
  if (last?.state !== "committed") violate(sim, `(f) the last good reload is ${last?.state}: ${last?.error?.message}`);
  for (const known of sim.reloads.values()) checkEnded(sim, known);
  if (state !== null) checkEngines(sim, state);
}

/** The second where Redis has forgotten how it ended. */
const TORN = ["fleet_torn", "redis_unavailable"];

function checkEnded(sim: Sim, { id, record, wroteLive }: Known): void {
  // What an emptied Redis has forgotten cannot end.
  const stored = readRecord(sim.contents, id);
  if (stored === null || record === null) return;
  if (!isTerminal(stored)) violate(sim, `(f) ${id} is still ${stored.state}`);
  const isOver = ["failed", "cancelled", "superseded"].includes(stored.state);
  if (isOver && wroteLive && !stored.liveChanged && !forgetsLast(sim)) {
    violate(sim, `(c) ${id} is ${stored.state} and says that nothing live has changed, but it has`);
  }
  if (stored.liveChanged && isOver && !TORN.includes(stored.error?.code ?? "")) {
    violate(sim, `(c) ${id} has changed live bytes and failed, and does not say that the fleet is torn`);
  }
}

export function ranksOf({ options }: Sim): { replica: number; rank: number; key: RankKey }[] {
  return Array.from({ length: options.replicas }, (_, replica) =>
    Array.from({ length: options.tensorParallelSize }, (_, rank) => ({ replica, rank, key: rankKey(replica, rank) })),
  ).flat();
}
