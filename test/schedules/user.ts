// Someone who uses the fleet. A refusal is an answer like any other, and a lost answer is not asked for again.

import type { FleetStore } from "../../orchestrator/fleet/fleet-store.js";
import { cancelReload, drainReplica, type Request, rollBack, submitTo, undrainReplica, useHooks } from "./requests.js";
import { forgetsLast, type Sim } from "./sim.js";

export interface User {
  useHooks(): Promise<void>;
  /** The id of the reload that was asked for. Each has a checkpoint of its own. */
  submit(more?: Partial<Request>): Promise<string>;
  rollBack(): Promise<void>;
  cancel(id: string): Promise<void>;
  cancelSome(): Promise<void>;
  drain(replica: number): Promise<void>;
  undrain(replica: number): Promise<void>;
}

export function openUser(sim: Sim, store: FleetStore): User {
  const { random, world } = sim;
  let submitted = 0;
  const attempt = (request: Promise<void>) =>
    request.catch((error: unknown) => {
      world.tell(`refused: ${error}`);
    });
  const nextId = () => {
    submitted += 1;
    return `r${submitted}`;
  };
  return {
    useHooks: () => attempt(useHooks(sim, store)),
    async submit(more = {}) {
      const id = nextId();
      await attempt(submitTo(sim, store, id, { ...wish(sim, submitted), ...more }));
      return id;
    },
    rollBack: () => attempt(rollBack(sim, store, nextId())),
    cancel: (id) => attempt(cancelReload(sim, store, id)),
    cancelSome: () => attempt(cancelReload(sim, store, `r${random.between(1, submitted)}`)),
    drain: (replica) => attempt(drainReplica(sim, store, replica)),
    undrain: (replica) => attempt(undrainReplica(sim, store, replica)),
  };
}

function wish(sim: Sim, checkpoint: number): Request {
  const { random } = sim;
  return {
    checkpoint,
    layout: random.chance(0.1) ? "large" : "small",
    inPlace: random.chance(forgetsLast(sim) ? 0.4 : 0.2),
    coalesce: random.chance(0.3) ? "latest" : "never",
    attempts: random.between(1, 5),
    deadlineMs: random.pick([1_500, 20_000, 60_000]),
    healMs: random.pick([3_000, 30_000, 60_000]),
  };
}
