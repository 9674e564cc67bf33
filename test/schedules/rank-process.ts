// A rank's worker in the world: the worker's own code over a memory core, taking jobs two at a time. A successor ends the one
// that holds the arena before it begins (P9), as the lock makes sure of on a host.

import { basename } from "node:path";
import { LayercastError } from "../../orchestrator/contract/errors.js";
import { type RankJob, type RankKey, rankKey, rankQueue } from "../../orchestrator/contract/jobs.js";
import {
  LOCK_NAME,
  openRankEngines,
  type RankEngines,
  type RankEnginesOptions,
} from "../../worker/engines/rank-engines.js";
import { openRunLock } from "../../worker/engines/run-lock.js";
import { openNativeWork } from "../../worker/native-work.js";
import type { Rank } from "../../worker/rank.js";
import { openRankArena } from "../../worker/rank-arena.js";
import { runJob } from "../../worker/run-job.js";
import { serve } from "../../worker/serve.js";
import { openStagingOwner } from "../../worker/staging.js";
import { openDoor } from "./attached-engine.js";
import { consume } from "./consume.js";
import { createMemoryCore, filesOf, releaseLocks } from "./memory-core.js";
import { SILENT } from "./silent.js";
import { ask, FLEET, hostOf, plansOf, type Sim, storeOf } from "./sim.js";
import type { Process } from "./world.js";

export interface RankProcess {
  key: RankKey;
  process: Process;
  incarnation: string;
}

const SLOTS = 2;
const NO_REPORT = { attempts: 0, finalize_ms: 0 };

/** Starts one life of a rank. `onEnd` when it has ended by itself, because it could not begin or must not go on. */
export function startRank(
  sim: Sim,
  replica: number,
  rank: number,
  life: number,
  beforeLiveWrite: (key: RankKey, reload: string) => void,
): RankProcess {
  const key = rankKey(replica, rank);
  const incarnation = `${replica}.${rank}.${life}`;
  const process = sim.world.spawn(`rank ${key} #${life}`);
  sim.processes.set(incarnation, process);
  const begin = async () => {
    const part = await openPart(sim, process, replica, rank, incarnation, beforeLiveWrite);
    await serve(part, false, {
      every: (ms, call) => sim.world.every(process, ms, call),
      delay: (ms) => sim.world.event(process, () => {}, { notBefore: sim.world.now + ms }),
      onMessage: (heed) =>
        ask(sim, process, () => {
          sim.subscribers.set(process, heed);
        }),
      onFatal: () => sim.world.kill(process),
    });
    sim.world.tell(`${process.name} takes jobs`);
    const queue = rankQueue(FLEET, key, incarnation);
    for (let slot = 0; slot < SLOTS; slot++) {
      consume(sim, process, queue, (job, attempt, isLast) => runJob(part, job as RankJob, attempt, isLast));
    }
  };
  process.onDeath.push(() => sim.subscribers.delete(process));
  process.onDeath.push(() => releaseLocks(hostOf(sim, key), process));
  begin().catch((error: unknown) => {
    sim.world.tell(`${process.name} cannot begin: ${error}`);
    sim.world.kill(process);
  });
  return { key, process, incarnation };
}

async function openPart(
  sim: Sim,
  process: Process,
  replica: number,
  rank: number,
  incarnation: string,
  beforeLiveWrite: (key: RankKey, reload: string) => void,
): Promise<Rank> {
  const key = rankKey(replica, rank);
  const disk = hostOf(sim, key);
  const core = createMemoryCore({
    disk,
    owner: process,
    piece() {
      const slowMs = sim.faults && sim.random.chance(0.1) ? sim.random.between(0, 300) : 0;
      const effect = () => {
        sim.bytesChanged = true; // by what follows
      };
      return sim.world.event(process, effect, { notBefore: sim.world.now + slowMs });
    },
    beforeLiveWrite(path) {
      // Another arena is being filled: nobody sees it yet.
      if (basename(path) !== "live.safetensors") return;
      beforeLiveWrite(key, disk.pages.get("control")?.reload ?? "");
    },
    bad: sim.badSources,
    gone: sim.goneSources,
  });
  const plans = plansOf(sim, process);
  const arena = await openRankArena({
    core,
    rank,
    directory: "",
    device: core.openDevice("cpu"),
    holders: null,
    poison: true,
    files: filesOf(disk),
    bytesMayBeLost: false,
    onDistrust(reason) {
      const { generation = 0 } = disk.pages.get("control") ?? {};
      if (generation % 2 === 0) sim.violations.push(`(P9) ${key}: ${reason}`);
    },
  });
  const store = storeOf(sim, process);
  const engines = await enginesOf(sim, process, { core, arena, store, plans, key, rank, incarnation });
  const work = openNativeWork(core, () => sim.world.kill(process));
  const look = () =>
    sim.world.event(process, () => {
      // The memory core looks at the files as it reads them.
    });
  return {
    fleet: FLEET,
    key,
    replica,
    rank,
    replicas: sim.options.replicas,
    tensorParallelSize: sim.options.tensorParallelSize,
    expertParallel: false,
    incarnation,
    host: `host ${key}`,
    lock: `lock ${key}`,
    device: "cpu",
    version: "0",
    core,
    store,
    plans,
    sources: {
      onThisHost: async (_owner, plan) => plan, // all hosts share their files
      verify: (files) => verify(sim, process, files),
      requireUntouched: look,
      becameLive: () => {},
    },
    arena,
    staging: openStagingOwner({ core, arena, work, engines, rank }),
    engines,
    pushes: NO_PUSHES as never,
    log: SILENT,
    swapping: Promise.resolve(),
    catchingUp: null,
    stopShowingLife: () => {},
    showRegistered: () => {},
    report: () => ({
      progress: NO_REPORT as never,
      attempted: () => {},
      layerWritten: () => {},
      layerComplete: () => {},
      cut: () => {},
      pushed: () => {},
      phase: () => {},
      retry: () => {},
    }),
  };
}

/** What looks at engines again and again is worth its events only where there are some. */
async function enginesOf(
  sim: Sim,
  process: Process,
  parts: Pick<RankEnginesOptions, "core" | "arena" | "store" | "plans" | "key" | "rank" | "incarnation">,
): Promise<RankEngines> {
  const clock = clockOf(sim, process);
  const { core, key } = parts;
  const { tensorParallelSize, attached } = sim.options;
  if (!attached) {
    return { ...openRunLock({ core, path: LOCK_NAME, clock, links: NO_LINKS }), leases: () => [], close: () => {} };
  }
  return openRankEngines({
    ...parts,
    ...{ fleet: FLEET, tensorParallelSize, lockPath: LOCK_NAME, log: SILENT },
    clock: { ...clock, every: (ms, call) => sim.world.every(process, ms, call) },
    openLinks: async (handlers) => openDoor(sim, key, process, handlers),
  });
}

function clockOf({ world }: Sim, process: Process) {
  return {
    now: () => world.now,
    delay: (ms: number) => world.event(process, () => {}, { notBefore: world.now + ms }),
  };
}

const NO_LINKS = { stop: () => {}, go: () => {}, names: () => [] };

/** Schedules push nothing. */
const NO_PUSHES = { arena: { livePath: "" }, files: { remove: () => {}, exists: () => false } };

function verify(sim: Sim, process: Process, files: readonly { path: string }[]): Promise<void> {
  return sim.world.event(process, () => {
    const lost = files.find(({ path }) => sim.goneSources.has(Number(path)));
    if (lost !== undefined) throw new LayercastError("source_not_found", `checkpoint ${lost.path} is gone`);
  });
}
