// All that a schedule consists of, put together: the world's clock, a Redis with its queues, hosts with their files, engines,
// and what is known of every reload whatever Redis may forget.

import { LayercastError } from "../../orchestrator/contract/errors.js";
import type { FleetMessage } from "../../orchestrator/contract/fleet-message.js";
import { CHANNELS, type RankKey } from "../../orchestrator/contract/jobs.js";
import type { FleetAccess, FleetStore } from "../../orchestrator/fleet/fleet-store.js";
import { createFleetStore } from "../../orchestrator/fleet/fleet-store.js";
import type { FleetWrite } from "../../orchestrator/fleet/fleet-write.js";
import type { PlanStore, ReloadPlan } from "../../orchestrator/fleet/plan-store.js";
import type { FleetState, ReloadRecord } from "../../orchestrator/fleet/state.js";
import type { AttachedEngine, Door } from "./doors.js";
import type { Disk } from "./memory-core.js";
import { copyJobs, type Jobs, lose, nextDue } from "./memory-queue.js";
import {
  type Contents,
  commit,
  contextOf,
  copyContents,
  emptyContents,
  readFleet,
  removeFleet,
  renewLease,
} from "./memory-redis.js";
import type { Random } from "./random.js";
import { createWorld, type Process, type Scheduler } from "./world.js";

export const FLEET = "f";

export interface Options {
  seed: number;
  replicas: number;
  tensorParallelSize: number;
  /**
   * `always`: each write is on disk at once; `waits`: what is not waited for may be lost with Redis; `untold`: the same, and
   * this Redis cannot say what it has on disk; `none`: all is lost.
   */
  disk: "always" | "waits" | "untold" | "none";
  withHooks: "no" | "abort" | "proceed";
  layersPerJob: number;
  /** Each replica has an engine that computes with its arenas. */
  attached: boolean;
}

/** What the world remembers of a reload. */
export interface Known {
  id: string;
  checkpoint: number;
  /** Ranks may change live bytes for it. */
  signalled: boolean;
  inPlace: boolean;
  /** As it last was, and whether it ever wrote live bytes. */
  record: ReloadRecord | null;
  wroteLive: boolean;
}

export interface Sim {
  options: Options;
  world: Scheduler;
  random: Random;
  contents: Contents;
  jobs: Jobs;
  /** Plans are never changed; they are lost with Redis all the same. */
  plans: Map<string, ReloadPlan>;
  redisRunId: string;
  onDisk: { contents: Contents; jobs: Jobs; plans: Map<string, ReloadPlan> };
  subscribers: Map<Process, (message: FleetMessage) => void>;
  /** What is on its way; it outlives who sent it. */
  network: Process;
  hosts: Map<RankKey, Disk>;
  /** By incarnation. */
  processes: Map<string, Process>;
  /** By replica: whether its engine stands still. */
  engines: boolean[];
  /** Where attached engines call workers, by rank. */
  doors: Map<RankKey, Door>;
  /** By replica. */
  attached: Map<number, AttachedEngine>;
  reloads: Map<string, Known>;
  goneSources: Set<number>;
  badSources: Set<number>;
  /** How likely a request to Redis fails, or its answer is lost. */
  redisTrouble: number;
  engineTrouble: number;
  faults: boolean;
  /** When the faults stopped. */
  calmSince: number;
  /** Since the invariants were looked at. */
  bytesChanged: boolean;
  violations: string[];
  /** Who listens to every write that took place. */
  onWrite: ((write: FleetWrite, state: FleetState) => void)[];
}

export function createSim(options: Options, random: Random, story: string[] | null): Sim {
  const world = createWorld(random, story);
  const sim: Sim = {
    options,
    world,
    random,
    contents: emptyContents(),
    jobs: new Map(),
    plans: new Map(),
    redisRunId: "1",
    onDisk: { contents: emptyContents(), jobs: new Map(), plans: new Map() },
    subscribers: new Map(),
    network: world.spawn("network"),
    hosts: new Map(),
    processes: new Map(),
    engines: new Array<boolean>(options.replicas).fill(false),
    doors: new Map(),
    attached: new Map(),
    reloads: new Map(),
    goneSources: new Set(),
    badSources: new Set(),
    redisTrouble: 0,
    engineTrouble: 0,
    faults: true,
    calmSince: Number.POSITIVE_INFINITY,
    bytesChanged: false,
    violations: [],
    onWrite: [],
  };
  world.nextChange.push(() => nextDue(sim.jobs, world.now));
  return sim;
}

/** One request to Redis, that may fail before it takes place, or be sent again because its answer was lost. */
export function ask<Result>(sim: Sim, process: Process, effect: () => Result): Promise<Result> {
  return sim.world.event(process, () => {
    if (!sim.random.chance(sim.redisTrouble)) return effect();
    if (sim.random.chance(0.5)) throw new LayercastError("redis_unavailable", "Redis does not answer");
    effect();
    return effect();
  });
}

export function storeOf(sim: Sim, process: Process): FleetStore {
  const access: FleetAccess = {
    read: (fleet, keys, field) =>
      ask(sim, process, () => ({
        state: readFleet(sim.contents, fleet, field),
        context: contextOf(sim.contents, fleet, sim.redisRunId, sim.world.now),
        stored: keys.map((key) => sim.contents.values.get(key) ?? null),
      })),
    write: (write) => ask(sim, process, () => writeFleet(sim, write)),
    fleets: () => ask(sim, process, () => [...sim.contents.fleets.keys()]),
    remove: (fleet, version) => ask(sim, process, () => removeFleet(sim.contents, fleet, version)),
    renewLease: (fleet, rank, incarnation, ttlMs) =>
      ask(sim, process, () => renewLease(sim.contents, fleet, rank, incarnation, sim.world.now + ttlMs)),
  };
  return createFleetStore(access);
}

function writeFleet(sim: Sim, write: FleetWrite): boolean {
  if (!commit(sim.contents, write, sim.redisRunId, sim.world.now)) return false;
  const state = JSON.parse(write.state) as FleetState;
  for (const listener of sim.onWrite) listener(write, state);
  if (forgetsLast(sim) && sim.random.chance(0.1)) bringToDisk(sim);
  for (const { channel, text } of write.messages) {
    if (channel !== CHANNELS.fleet) continue;
    for (const [process, heed] of sim.subscribers) {
      if (sim.faults && sim.random.chance(0.1)) continue;
      void sim.world.event(process, () => heed(JSON.parse(text) as FleetMessage));
    }
  }
  return true;
}

export function plansOf(sim: Sim, process: Process): PlanStore {
  return {
    save: (reload, plan) => ask(sim, process, () => void sim.plans.set(reload, plan)),
    load: (content) =>
      ask(sim, process, () => {
        const plan = sim.plans.get(content);
        if (plan !== undefined) return plan;
        throw new LayercastError("source_gone", `the plan of ${content} is no longer kept`);
      }),
    mapping: (digest) =>
      ask(sim, process, () => [...sim.plans.values()].find((plan) => plan.mappingDigest === digest)?.layout ?? null),
    layout: (digest) =>
      ask(sim, process, () => [...sim.plans.values()].find((plan) => plan.layoutDigest === digest)?.layout ?? null),
  };
}

export function bringToDisk(sim: Sim): void {
  sim.onDisk = {
    contents: copyContents(sim.contents),
    jobs: copyJobs(sim.jobs),
    plans: new Map(sim.plans),
  };
}

/** Redis ends and comes back as another life of it, with what its disk has; connections break. */
export function restartRedis(sim: Sim): void {
  sim.redisRunId = String(Number(sim.redisRunId) + 1);
  const { disk } = sim.options;
  if (forgetsLast(sim)) {
    const { contents, jobs, plans } = sim.onDisk;
    sim.contents = copyContents(contents);
    sim.jobs = copyJobs(jobs);
    sim.plans = new Map(plans);
  } else if (disk === "none") {
    sim.contents = emptyContents();
    sim.jobs = new Map();
    sim.plans = new Map();
  }
  lose(sim.jobs, null, sim.world.now);
  sim.world.tell(
    `Redis comes back ${disk === "always" ? "whole" : disk === "none" ? "empty" : "without its last writes"}`,
  );
}

/** Whether Redis may come back without its last writes. */
export function forgetsLast({ options }: Sim): boolean {
  return options.disk === "waits" || options.disk === "untold";
}

export function fleetOf(sim: Sim): FleetState | null {
  return readFleet(sim.contents, FLEET);
}

export function hostOf(sim: Sim, key: RankKey): Disk {
  const empty: Disk = { arenas: new Map(), headers: new Map(), pages: new Map(), staging: null, locks: new Map() };
  const found: Disk = sim.hosts.get(key) ?? empty;
  sim.hosts.set(key, found);
  return found;
}
