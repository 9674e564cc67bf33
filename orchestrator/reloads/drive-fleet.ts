// What makes any orchestrator take any reload on from its recorded state (P7): whenever a fleet changes, and each second,
// the step that its active reload waits for is done. Doing it twice, here and elsewhere, is harmless.

import { LayercastError, reportError } from "../contract/errors.js";
import type { FleetMessage } from "../contract/fleet-message.js";
import type { ControlJob } from "../contract/jobs.js";
import { decideIfReady, type NextStep, nextStep } from "../fleet/advance.js";
import { hookDue } from "../fleet/engine-transitions.js";
import { enteredFields } from "../fleet/fleet-store.js";
import { fail } from "../fleet/reload-transitions.js";
import { activeReload, type FleetState, isTerminal, type ReloadRecord } from "../fleet/state.js";
import { faultPoint } from "../host/fault-point.js";
import type { DriveDeps } from "./deps.js";
import { confirmReload, decideReload, enqueueRanks, sendSwaps } from "./enqueue-reload.js";
import { drivePush } from "./push/drive-push.js";
import { runHook } from "./run-hooks.js";
import { startReload } from "./start-reload.js";

export interface Driver {
  /** Ends when the steps in progress are done. */
  close(): Promise<void>;
}

const SWEEP_EVERY_MS = 1_000;

/** What drives the driver. */
export interface DriverHost {
  /** Calls again and again, until the returned function is called. */
  every(ms: number, call: () => void): () => void;
  /** The fleets' messages, as good as they come. */
  onFleetChanged(handle: (message: FleetMessage) => void): void;
  /** Part of each sweep. */
  trim(): Promise<void>;
}

export function openDriver(deps: DriveDeps, { every, onFleetChanged, trim }: DriverHost): Driver {
  const running = new Map<string, Promise<void>>();
  /** What came while a fleet was being driven: the newest state known, or null for "look". */
  const waiting = new Map<string, FleetState | null>();
  /** Hook calls may take long, and nothing else waits for them. */
  const calling = new Set<Promise<void>>();
  const seen = new Map<string, number>();
  const torn = new Set<string>();
  let closed = false;

  function tellMended({ fleet, torn: isTorn, committed }: FleetState): void {
    if (isTorn) torn.add(fleet);
    else if (torn.delete(fleet)) {
      deps.log.info(
        { fleet, weight_version: committed?.weightVersion },
        "every rank holds the same weights: no longer torn",
      );
    }
  }

  function drive(fleet: string, state: FleetState | null, sweeping: boolean): void {
    if (closed) return;
    if (running.has(fleet)) {
      waiting.set(fleet, state);
      return;
    }
    const driven = driveOnce(deps, fleet, state, sweeping)
      .then((seenState) => {
        tellMended(seenState);
        callHook(seenState);
      })
      .catch((error: unknown) =>
        deps.log.warn({ fleet, err: error }, "driving a fleet failed; the next sweep tries again"),
      )
      .finally(() => {
        running.delete(fleet);
        const next = waiting.get(fleet);
        if (waiting.delete(fleet)) drive(fleet, next ?? null, false);
      });
    running.set(fleet, driven);
  }

  function callHook(state: FleetState): void {
    if (hookDue(state) === null) return;
    const { fleet } = state;
    const call = runHook(deps, fleet)
      .catch((error: unknown) => deps.log.warn({ fleet, err: error }, "a hook call failed; the next sweep tries again"))
      .finally(() => calling.delete(call));
    calling.add(call);
  }

  async function sweep(): Promise<void> {
    for (const fleet of await deps.store.fleets()) drive(fleet, null, true);
    await trim();
  }

  // What this process wrote it need not read again.
  deps.store.onWritten((state, entered) => {
    for (const record of entered) deps.log.info({ fleet: record.fleet, ...enteredFields(record) }, record.state);
    seen.set(state.fleet, state.version);
    for (const { id, push } of entered.filter(isTerminal)) if (push) void deps.spool.remove(id).catch(() => {}); // or a sweep does
    if (nextStep(state) !== null || hookDue(state) !== null || opensPush(entered)) drive(state.fleet, state, false);
  });
  onFleetChanged(({ fleet, version, waits }) => {
    if (waits && version > (seen.get(fleet) ?? 0)) drive(fleet, null, false);
  });
  const stop = every(SWEEP_EVERY_MS, () => {
    sweep().catch((error: unknown) => deps.log.warn({ err: error }, "the sweep failed; the next one tries again"));
  });
  return {
    async close() {
      closed = true;
      stop();
      await Promise.all([...running.values(), ...calling]);
    },
  };
}

/** One look at the fleet, and the step it waits for. The look itself decides, publishes and admits what it can. */
async function driveOnce(
  deps: DriveDeps,
  fleet: string,
  known: FleetState | null,
  sweeping: boolean,
): Promise<FleetState> {
  const state = known ?? (await look(deps, fleet));
  if (sweeping) await removeRetiredQueues(deps, state);
  if (isPushing(state)) await drivePush(deps, state);
  const step = nextStep(state);
  if (step !== null) await takeStep(deps, state, step, sweeping);
  return state;
}

/** Ranks that registered again are sent what there is with the sweep; what is new, by who accepts it. */
function opensPush(entered: ReloadRecord[]): boolean {
  return entered.some(({ push, state }) => push && state === "loading");
}

function isPushing(state: FleetState): boolean {
  return Boolean(activeReload(state)?.push);
}

async function look(deps: DriveDeps, fleet: string): Promise<FleetState> {
  await faultPoint("orchestrator.look");
  const onDisk = await deps.disk.atOnce();
  const { state } = await deps.store.transact(fleet, (draft, context) => decideIfReady(draft, context, onDisk));
  return state;
}

async function takeStep(deps: DriveDeps, state: FleetState, step: NextStep, sweeping: boolean): Promise<void> {
  const { fleet } = state;
  const { reload, epoch } = step;
  const record = activeReload(state);
  const enqueueing = record?.enqueueings ?? 0;
  switch (step.kind) {
    case "start":
      return deps.queues.addControl({ kind: "start", fleet, reload, epoch }, enqueueing);
    case "enqueue":
      // The first time it is part of the start job, unless engines were paused first, or a push had to be finished; the sweep
      // helps on a job that died.
      if (enqueueing > 0 || sweeping || record?.inPlace || record?.push) await enqueueRanks(deps, state, reload);
      return;
    case "decide":
      return ignoreStale(decideReload(deps, fleet, reload, epoch));
    case "confirm":
      return ignoreStale(confirmReload(deps, fleet, reload, epoch));
    case "swap":
      return sendSwaps(deps, state, reload, sweeping);
    default:
      return step satisfies never;
  }
}

async function removeRetiredQueues(deps: DriveDeps, { fleet, retiredQueues }: FleetState): Promise<void> {
  if (retiredQueues.length === 0) return;
  for (const name of retiredQueues) await deps.queues.removeQueue(name);
  await deps.store.transact(fleet, (draft) => {
    draft.retiredQueues = draft.retiredQueues.filter((name) => !retiredQueues.includes(name));
  });
}

/** Others may have been faster, or a rank may have gone: the next look at the state says what to do. */
async function ignoreStale(step: Promise<void>): Promise<void> {
  try {
    await step;
  } catch (error) {
    const expected = error instanceof LayercastError && (error.code === "stale_job" || error.code === "not_prepared");
    if (!expected) throw error;
  }
}

/** A control job from the queue. What cannot succeed, or has failed for the last time, fails the reload. */
export async function runControlJob(deps: DriveDeps, job: ControlJob, isLast: boolean): Promise<void> {
  const { fleet, reload, epoch } = job;
  try {
    await (job.kind === "start" ? startReload : decideReload)(deps, fleet, reload, epoch);
  } catch (error) {
    if (error instanceof LayercastError && error.code === "stale_job") return;
    if (isLast || (error instanceof LayercastError && !error.retryable)) await failReload(deps, job, error);
    throw error;
  }
}

async function failReload(deps: DriveDeps, { fleet, reload, epoch }: ControlJob, error: unknown): Promise<void> {
  const report = reportError(error);
  deps.log.warn({ reload, epoch, err: error }, `failed: ${report.message}`);
  await deps.store.transact(fleet, (draft, { now }) => fail(draft, reload, epoch, report, now));
}
