// What makes any orchestrator take any reload on from its recorded state (P7): whenever a fleet changes, and each second,
// the step that its active reload waits for is done. Doing it twice, here and elsewhere, is harmless.

import { LayercastError, reportError } from "../contract/errors.js";
import type { ControlJob } from "../contract/jobs.js";
import type { ReloadDeps } from "./deps.js";
import { decideReload, enqueueRanks, sendSwaps } from "./enqueue-reload.js";
import { nextStep } from "./protocol/advance.js";
import { fail } from "./protocol/reload-transitions.js";
import { activeReload, type FleetState } from "./protocol/state.js";
import { startReload } from "./start-reload.js";

export interface Driver {
  /** Ends when the steps in progress are done. */
  close(): Promise<void>;
}

const SWEEP_EVERY_MS = 1_000;

export function openDriver(deps: ReloadDeps): Driver {
  const running = new Map<string, Promise<void>>();
  const again = new Set<string>();
  let closed = false;

  function drive(fleet: string, sweeping: boolean): void {
    if (closed) return;
    if (running.has(fleet)) {
      again.add(fleet);
      return;
    }
    const driven = driveOnce(deps, fleet, sweeping)
      .catch((error: unknown) =>
        deps.log.warn({ fleet, err: error }, "driving a fleet failed; the next sweep tries again"),
      )
      .finally(() => {
        running.delete(fleet);
        if (again.delete(fleet)) drive(fleet, false);
      });
    running.set(fleet, driven);
  }

  async function sweep(): Promise<void> {
    for (const fleet of await deps.store.fleets()) drive(fleet, true);
  }

  deps.follower.onFleetChanged((fleet) => drive(fleet, false));
  const timer = setInterval(() => {
    sweep().catch((error: unknown) => deps.log.warn({ err: error }, "the sweep failed; the next one tries again"));
  }, SWEEP_EVERY_MS);
  return {
    async close() {
      closed = true;
      clearInterval(timer);
      await Promise.all(running.values());
    },
  };
}

async function driveOnce(deps: ReloadDeps, fleet: string, sweeping: boolean): Promise<void> {
  // A write without a transition still advances: deadlines, admission, lost leases.
  const state = sweeping ? await advanced(deps, fleet) : ((await deps.store.read(fleet))?.state ?? null);
  if (state === null) return;
  if (sweeping) await removeRetiredQueues(deps, state);
  const step = nextStep(state);
  if (step === null) return;
  const { reload, epoch } = step;
  const enqueueing = activeReload(state)?.enqueueings ?? 0;
  switch (step.kind) {
    case "start":
      return deps.queues.addControl({ kind: "start", fleet, reload, epoch }, enqueueing);
    case "enqueue":
      // The first time it is part of the start job, which the sweep helps on if its orchestrator died.
      return enqueueing > 0 || sweeping ? enqueueRanks(deps, state, reload) : undefined;
    case "decide":
      return tolerating(decideReload(deps, fleet, reload, epoch));
    case "swap":
      return sendSwaps(deps, state, reload);
    default:
      return step satisfies never;
  }
}

async function advanced(deps: ReloadDeps, fleet: string): Promise<FleetState> {
  return (await deps.store.transact(fleet, () => {})).state;
}

async function removeRetiredQueues(deps: ReloadDeps, { fleet, retiredQueues }: FleetState): Promise<void> {
  if (retiredQueues.length === 0) return;
  for (const name of retiredQueues) await deps.queues.removeQueue(name);
  await deps.store.transact(fleet, (draft) => {
    draft.retiredQueues = draft.retiredQueues.filter((name) => !retiredQueues.includes(name));
  });
}

/** Others may have been faster, or a rank may have gone: the next look at the state says what to do. */
async function tolerating(step: Promise<void>): Promise<void> {
  try {
    await step;
  } catch (error) {
    const expected = error instanceof LayercastError && (error.code === "stale_job" || error.code === "not_prepared");
    if (!expected) throw error;
  }
}

/** A control job from the queue. What cannot succeed, or has failed for the last time, fails the reload. */
export async function runControlJob(deps: ReloadDeps, job: ControlJob, isLast: boolean): Promise<void> {
  const { fleet, reload, epoch } = job;
  try {
    await (job.kind === "start" ? startReload : decideReload)(deps, fleet, reload, epoch);
  } catch (error) {
    if (error instanceof LayercastError && error.code === "stale_job") return;
    if (isLast || (error instanceof LayercastError && !error.retryable)) await failReload(deps, job, error);
    throw error;
  }
}

async function failReload(deps: ReloadDeps, { fleet, reload, epoch }: ControlJob, error: unknown): Promise<void> {
  const report = reportError(error);
  deps.log.warn({ reload, epoch, err: error }, `failed: ${report.message}`);
  await deps.store.transact(fleet, (draft, { now }) => fail(draft, reload, epoch, report, now));
}
