// An orchestrator in the world: the program's own driver and control jobs over a memory Redis, with engines that may not answer.

import { LayercastError } from "../../orchestrator/contract/errors.js";
import type { ControlJob } from "../../orchestrator/contract/jobs.js";
import { CONTROL_QUEUE } from "../../orchestrator/contract/jobs.js";
import type { CallEngines } from "../../orchestrator/reloads/call-engines.js";
import type { DriveDeps } from "../../orchestrator/reloads/deps.js";
import { openDriver, runControlJob } from "../../orchestrator/reloads/drive-fleet.js";
import { planOf } from "./checkpoints.js";
import { consume } from "./consume.js";
import { senderOf } from "./memory-queue.js";
import { requestOf } from "./requests.js";
import { SILENT } from "./silent.js";
import { ask, bringToDisk, plansOf, type Sim, storeOf } from "./sim.js";
import type { Process } from "./world.js";

const SLOTS = 2;
/** Schedules push nothing. */
const NO_PUSHES = {};

export function startOrchestrator(sim: Sim, name: string): Process {
  const process = sim.world.spawn(name);
  const deps: DriveDeps = {
    name,
    store: storeOf(sim, process),
    queues: senderOf(
      () => sim.jobs,
      (effect) => ask(sim, process, effect),
    ),
    plans: plansOf(sim, process),
    records: { read: (id) => ask(sim, process, () => requestOf(sim, id)) },
    makePlan: (request, state) =>
      sim.world.event(process, () => {
        const { checkpoint, layout, retry } = JSON.parse(request.metadata.schedule ?? "{}");
        return planOf(checkpoint, layout, state.topology?.tensorParallelSize ?? 1, sim.options.layersPerJob, retry);
      }),
    disk: {
      atOnce: async () => sim.options.disk !== "waits",
      wait: () => ask(sim, process, () => bringToDisk(sim)),
    },
    callEngines: enginesOf(sim, process),
    swapsSent: new Map(),
    sessions: NO_PUSHES as never,
    spool: NO_PUSHES as never,
    sources: NO_PUSHES as never,
    spooling: new Map(),
    log: SILENT,
  };
  openDriver(deps, {
    every: (ms, call) => sim.world.every(process, ms, call),
    onFleetChanged: (heed) => void sim.subscribers.set(process, heed),
    trim: async () => {},
  });
  process.onDeath.push(() => sim.subscribers.delete(process));
  for (let slot = 0; slot < SLOTS; slot++) {
    consume(sim, process, CONTROL_QUEUE, (job, _attempt, isLast) => runControlJob(deps, job as ControlJob, isLast));
  }
  return process;
}

/**
 * Urls are replica numbers. What has been sent arrives, even if who sent it is gone by then, but not after its time limit; an
 * engine that fails may have done what was asked all the same.
 */
function enginesOf(sim: Sim, process: Process): CallEngines {
  const { world, random } = sim;
  const call = async (what: "pause" | "resume", url: string, timeoutMs: number) => {
    const delayMs = sim.faults ? random.between(0, timeoutMs / 2) : 0;
    const isBroken = await world.event(
      sim.network,
      () => {
        const breaks = random.chance(sim.engineTrouble);
        if (!breaks || random.chance(0.5)) sim.engines[Number(url)] = what === "pause";
        world.tell(`${process.name}: engine ${url} ${what}${breaks ? " fails" : "s"}`);
        return breaks;
      },
      { notBefore: world.now + delayMs },
    );
    return world.event(process, () => isBroken);
  };
  return async ({ what, urls, timeoutMs }) => {
    const failed = await Promise.all(urls.map((url) => call(what, url, timeoutMs)));
    if (failed.includes(true)) throw new LayercastError("hook_failed", `an engine did not ${what}`);
    return 0;
  };
}
