// What befalls a fleet. Each fault is one function; the seed picks which, and when.

import type { FleetStore } from "../../orchestrator/fleet/fleet-store.js";
import { activeReload } from "../../orchestrator/fleet/state.js";
import type { Crew } from "./crew.js";
import { lose } from "./memory-queue.js";
import { cancelReload, drainReplica } from "./requests.js";
import { forgetsLast, restartRedis, type Sim } from "./sim.js";
import type { Process } from "./world.js";

type Fault = (sim: Sim, crew: Crew) => void;

const FAULTS: readonly Fault[] = [
  killRank,
  killRank,
  killOrchestrator,
  killBoth,
  stopRank,
  stopOrchestrator,
  replaceStopped,
  deliverAgain,
  restartRedis,
  troubleRedis,
  troubleEngines,
  spoilSource,
];
const ATTACHED_FAULTS: readonly Fault[] = [killEngine, stopEngine];

export function strike(sim: Sim, crew: Crew): void {
  const faults = sim.options.attached ? [...FAULTS, ...ATTACHED_FAULTS] : FAULTS;
  if (sim.faults) sim.random.pick(faults)(sim, crew);
}

/** Faults like to come just when something has been written: at each step of a reload, and while engines stand still. */
export function strikeOnWrites(sim: Sim, crew: Crew, user: FleetStore, nemesis: Process): void {
  const { random, world } = sim;
  let steps = "";
  let stopped = "";
  sim.onWrite.push((_, state) => {
    if (!sim.faults) return;
    const record = activeReload(state);
    const nowSteps = `${record?.id} ${record?.state}`;
    const nowStopped = `${state.engineStop?.reload} ${state.engineStop?.phase}`;
    const delayed = { notBefore: world.now + random.between(0, 60) };
    if (nowSteps !== steps && random.chance(0.06)) void world.event(nemesis, () => strike(sim, crew), delayed);
    // Where it forgets, what it forgets matters most while a reload is at work, and that one was given up.
    const isGivenUp = !nowSteps.startsWith(steps.split(" ")[0] ?? "") && !steps.endsWith("committing");
    const forgets = forgetsLast(sim) && random.chance(isGivenUp ? 0.2 : 0.05);
    if (nowSteps !== steps && forgets) void world.event(nemesis, () => sim.faults && restartRedis(sim), delayed);
    if (nowSteps !== steps && record?.state === "finalizing" && random.chance(0.1)) {
      cancelReload(sim, user, record.id).catch(() => {});
    }
    if (nowStopped !== stopped && sim.options.replicas > 1 && random.chance(0.3)) {
      drainReplica(sim, user, random.between(0, 1)).catch(() => {});
    }
    steps = nowSteps;
    stopped = nowStopped;
  });
}

function someRank(sim: Sim, crew: Crew) {
  return sim.random.pick([...crew.ranks.values()]);
}

function someOrchestrator(sim: Sim, crew: Crew): Process {
  return sim.random.pick([...crew.orchestrators.values()]);
}

function killRank(sim: Sim, crew: Crew): void {
  sim.world.kill(someRank(sim, crew).process);
}

function killOrchestrator(sim: Sim, crew: Crew): void {
  sim.world.kill(someOrchestrator(sim, crew));
}

function killBoth(sim: Sim, crew: Crew): void {
  killOrchestrator(sim, crew);
  killRank(sim, crew);
}

function stopRank(sim: Sim, crew: Crew): void {
  standStill(sim, someRank(sim, crew).process);
}

function stopOrchestrator(sim: Sim, crew: Crew): void {
  standStill(sim, someOrchestrator(sim, crew));
}

/** Its successor begins while it stands still; when it goes on, it must not be there any more. */
function replaceStopped(sim: Sim, crew: Crew): void {
  const { key, process } = someRank(sim, crew);
  const [replica = 0, rank = 0] = key.split("/").map(Number);
  standStill(sim, process);
  sim.world.tell(`rank ${key} is replaced`);
  crew.replace(replica, rank);
}

/** Shorter than a lease, longer than one, longer than most reloads. */
const STANDSTILLS_MS = [300, 3_000, 8_000, 20_000];

function standStill(sim: Sim, process: Process): void {
  sim.world.stop(process, sim.random.pick(STANDSTILLS_MS));
  lose(sim.jobs, process, sim.world.now);
}

/** Some job of all there ever were, late ones of ended reloads too. */
function deliverAgain({ jobs, random, world }: Sim): void {
  if (jobs.size === 0) return;
  const job = random.pick([...jobs.values()]);
  world.tell(`${job.id} is delivered once more`);
  jobs.set(`${job.id}+`, { ...job, id: `${job.id}+`, state: "waiting", open: 0, parent: null, notBefore: 0 });
}

function troubleRedis(sim: Sim): void {
  sim.redisTrouble = sim.random.pick([0, 0.05, 0.3]);
  sim.world.tell(`of requests to Redis fail ${sim.redisTrouble}`);
}

function troubleEngines(sim: Sim): void {
  sim.engineTrouble = sim.random.pick([0, 0.3, 1]);
  sim.world.tell(`of engines fail ${sim.engineTrouble}`);
}

function killEngine({ attached, random, world }: Sim): void {
  if (attached.size > 0) world.kill(random.pick([...attached.values()]).process);
}

/** It keeps its lock, wherever it is. */
function stopEngine({ attached, random, world }: Sim): void {
  if (attached.size > 0) world.stop(random.pick([...attached.values()]).process, random.pick(STANDSTILLS_MS));
}

function spoilSource(sim: Sim): void {
  const checkpoint = sim.random.between(1, Math.max(1, sim.reloads.size));
  const how = sim.random.pick([sim.goneSources, sim.badSources]);
  how.add(checkpoint);
  sim.world.tell(`checkpoint ${checkpoint} is ${how === sim.goneSources ? "gone" : "changed"}`);
}
