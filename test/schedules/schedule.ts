// One schedule: a seed becomes a fleet, users that submit, roll back and cancel, and faults at any point; then the faults stop,
// and everything must end well. Returns what was violated.

import type { RankKey } from "../../orchestrator/contract/jobs.js";
import { whyNotRoutable } from "../../orchestrator/fleet/advance.js";
import { expectedRanks, type FleetState, missingRanks } from "../../orchestrator/fleet/state.js";
import type { LayoutName } from "./checkpoints.js";
import { type Crew, startCrew } from "./crew.js";
import { strike, strikeOnWrites } from "./faults.js";
import { checkEnd, checkQuiet, watch } from "./invariants.js";
import { contextOf } from "./memory-redis.js";
import { seededRandom } from "./random.js";
import { createSim, FLEET, fleetOf, type Options, type Sim, storeOf } from "./sim.js";
import { openUser, type User } from "./user.js";

export interface Outcome {
  seed: number;
  violations: string[];
  events: number;
  story: string[] | null;
}

const MAX_EVENTS = 60_000;

export async function runSchedule(seed: number, tellStory: boolean): Promise<Outcome> {
  const random = seededRandom(seed);
  const options: Options = {
    seed,
    replicas: random.chance(0.25) ? 2 : 1,
    tensorParallelSize: random.chance(0.8) ? 2 : 1,
    disk: random.pick(["always", "always", "waits", "untold", "none"]),
    withHooks: random.pick(["no", "abort", "proceed"]),
    layersPerJob: random.between(1, 3),
    attached: seed % 4 === 3,
  };
  const sim = createSim(options, random, tellStory ? [] : null);
  sim.world.tell(JSON.stringify(options));
  watch(sim);
  let events = 0;
  sim.world.afterEvent.push(() => {
    events += 1;
  });
  const ended = { last: null as string | null };
  const director = direct(sim, ended);
  director.catch((error: unknown) => sim.violations.push(`the schedule itself failed: ${error}`));
  const how = await sim.world.run(() => ended.last !== null || sim.violations.length > 0, MAX_EVENTS);
  if (how !== "done") sim.violations.push(`(f) the schedule is ${how}`);
  else if (ended.last !== null) checkEnd(sim, ended.last);
  return { seed, violations: sim.violations, events, story: sim.world.story };
}

/** What happens to the fleet from outside: some acts, most of them with faults; then calm, and a last good reload. */
async function direct(sim: Sim, ended: { last: string | null }): Promise<void> {
  const { random, world } = sim;
  const director = world.spawn("director");
  const store = storeOf(sim, director);
  const crew = startCrew(sim);
  strikeOnWrites(sim, crew, store, director);
  const sleep: Sleep = (ms) => world.event(director, () => {}, { notBefore: world.now + ms });
  const user = openUser(sim, store);

  await user.useHooks();
  await user.submit({ layout: "small", deadlineMs: 60_000 });
  const acts = random.between(2, 6);
  for (let count = 0; count < acts; count++) {
    await sleep(random.pick(PAUSES_MS));
    await act(sim, user, crew, sleep);
    if (random.chance(0.5)) strike(sim, crew);
  }
  await sleep(random.pick(PAUSES_MS));
  calm(sim);
  await untilQuiet(sim, sleep);
  checkQuiet(sim);
  const last = await user.submit({
    inPlace: false,
    attempts: 5,
    deadlineMs: 120_000,
    healMs: 120_000,
    layout: goodLayout(sim),
  });
  await untilQuiet(sim, sleep);
  await untilEnginesCompute(sim, sleep);
  ended.last = last;
}

type Sleep = (ms: number) => Promise<void>;

async function act(sim: Sim, user: User, crew: Crew, sleep: Sleep): Promise<void> {
  const { random, options } = sim;
  const kind = random.between(0, 9);
  if (kind <= 3) {
    const id = await user.submit();
    if (!random.chance(0.3)) return;
    await sleep(random.between(0, 150));
    await user.cancel(id);
  } else if (kind === 4) await user.rollBack();
  else if (kind === 5) await user.cancelSome();
  else if (kind === 6 && options.replicas > 1) {
    const replica = random.between(0, 1);
    if (random.chance(0.3)) await user.undrain(replica);
    else await user.drain(replica);
  } else strike(sim, crew);
}

async function untilQuiet(sim: Sim, sleep: Sleep): Promise<void> {
  for (let wait = 0; wait < 200 && !isQuiet(sim); wait++) await sleep(1_000);
}

/** Under attached engines another layout than that of the arenas is refused, whatever Redis remembers of what is committed. */
function goodLayout(sim: Sim): LayoutName {
  const standing = Object.values(fleetOf(sim)?.ranks ?? {}).map(({ live }) => live.held?.layoutDigest);
  return sim.options.attached && standing.includes("large") ? "large" : "small";
}

/** Nobody stays still for ever: with nothing in their way, attached engines compute within 30 s. */
async function untilEnginesCompute(sim: Sim, sleep: Sleep): Promise<void> {
  const stillEngines = () => {
    const drained = fleetOf(sim)?.drained ?? {};
    return [...sim.attached.values()].filter(({ replica, isRunning }) => !isRunning && drained[replica] === undefined);
  };
  for (let wait = 0; wait < 300 && stillEngines().length > 0; wait++) await sleep(100);
  for (const { process } of stillEngines()) sim.violations.push(`(h) ${process.name} stands still for ever`);
}

/** Between what happens: within a step of a reload, a reload, a lease. */
const PAUSES_MS = [0, 10, 40, 100, 250, 1_500, 7_000];

/** Nothing runs, everyone is there, and who can serve does: a torn fleet, or one whose source is gone, waits for the last reload. */
function isQuiet(sim: Sim): boolean {
  const state = fleetOf(sim);
  if (state === null || Object.keys(state.reloads).length > 0) return false;
  const context = contextOf(sim.contents, FLEET, sim.redisRunId, sim.world.now);
  if (state.topology === null || missingRanks(state, context).length > 0) return false;
  if (state.torn) return expectedRanks(state).every((key) => hasTold(sim, state, key));
  if (state.engineStop !== null) return false;
  const inTrouble = Object.values(state.ranks).some(({ trouble }) => trouble !== null);
  return inTrouble || state.committed === null || whyNotRoutable(state, context) === null;
}

/** What the rank's page shows is in the fleet's document: a rank that swapped a moment ago has yet to report it. */
function hasTold(sim: Sim, state: FleetState, key: RankKey): boolean {
  return sim.hosts.get(key)?.pages.get("control")?.generation === state.ranks[key]?.live.generation;
}

function calm(sim: Sim): void {
  sim.faults = false;
  sim.redisTrouble = 0;
  sim.engineTrouble = 0;
  sim.calmSince = sim.world.now;
  sim.world.tell("faults stop");
}
