// Engines that stand still while live bytes change (P12). Every call is recorded before it is made, by one orchestrator at
// a time; one that dies leaves the record, from which the next goes on: what was paused is resumed, whatever happens.

import { countOf } from "../contract/count-of.js";
import { type ErrorReport, LayercastError } from "../contract/errors.js";
import { failNow, signal } from "./reload-transitions.js";
import { activeReload, type EngineStop, type FleetState, type Hooks, type ReloadRecord } from "./state.js";

/** From the next stop on, and for a resume that has failed. null: no hooks, and such a resume is given up. */
export function setHooks(state: FleetState, hooks: Hooks | null): void {
  const replicas = state.topology?.replicas;
  for (const { urls } of hooks === null ? [] : [hooks.pause, hooks.resume]) {
    if (urls.length === 1 || replicas === undefined || urls.length === replicas) continue;
    throw new LayercastError(
      "invalid_request",
      `fleet ${state.fleet} has ${countOf(replicas, "replica")} and the hook names ${countOf(urls.length, "url")}: give one, or one a replica`,
      { replicas, urls: urls.length },
    );
  }
  state.hooks = hooks;
  // Or else a mistake in the resume hook, or an engine that is gone, would keep the fleet unroutable for good.
  if (state.engineStop === null || state.engineStop.failure === null) return;
  if (hooks === null) state.engineStop = null;
  else state.engineStop.hooks = hooks;
}

/** The call that waits to be made. */
export function hookDue({ engineStop }: FleetState): "pause" | "resume" | null {
  if (engineStop === null || engineStop.phase === "paused") return null;
  return engineStop.phase === "pausing" ? "pause" : "resume";
}

/** Beyond the calls' own limit: the caller writes down what came of them. */
const CALLER_GRACE_MS = 2_000;

/** The right to make the call that is due, until its time limit is over; null when there is none to make, or another has it. */
export function claimHookCall(state: FleetState, name: string, now: number): EngineStop | null {
  const { engineStop } = state;
  if (engineStop === null || hookDue(state) === null) return null;
  if (engineStop.caller !== null && now < engineStop.caller.until) return null;
  engineStop.caller = { name, until: claimEnd(engineStop, now) };
  return engineStop;
}

/** More time for who has not begun yet; false when the call is no longer his, or no longer what is needed. */
export function renewHookCall(state: FleetState, call: HookCall, now: number): boolean {
  const { engineStop } = state;
  if (engineStop === null || !isCalling(state, call)) return false;
  const isNeeded = isFor(engineStop, call);
  engineStop.caller = isNeeded ? { name: call.name, until: claimEnd(engineStop, now) } : null;
  return isNeeded;
}

function claimEnd({ hooks }: EngineStop, now: number): number {
  return now + hooks.timeoutMs + CALLER_GRACE_MS;
}

/** Whose outcome is reported: a call that another has taken over in the meantime does not count. */
export interface HookCall {
  /** As it was claimed; no two claims have the same. */
  name: string;
  /** Of the stop that it was claimed for: a later one may call other engines, and waits for this call to be over. */
  epoch: number;
  phase: EngineStop["phase"];
}

function isFor({ epoch, phase }: EngineStop, call: HookCall): boolean {
  return epoch === call.epoch && phase === call.phase;
}

/** Whether the call is still that caller's to make, or another has taken it over. */
export function isCalling({ engineStop }: FleetState, call: HookCall): boolean {
  return engineStop?.caller?.name === call.name;
}

/**
 * An engine was asked to pause by a caller that had lost its claim meanwhile (its process stood still, say): it may stand still
 * after the resume that it should have come before. Nobody else knows, so it is resumed, once more if need be.
 */
export function resumeAfterLatePause(state: FleetState, stop: EngineStop): void {
  const current = state.engineStop;
  if (current === null) {
    state.engineStop = { ...stop, phase: "resuming", caller: null, pausedAt: null, failure: null };
  } else if (current.phase === "resuming") {
    current.caller = null; // the call at hand may have been made before; its outcome no longer counts
  }
}

/** The call is over; its stop, if the outcome still matters. */
function settle(state: FleetState, call: HookCall): EngineStop | null {
  const { engineStop } = state;
  if (engineStop?.caller?.name !== call.name) return null;
  engineStop.caller = null;
  return isFor(engineStop, call) ? engineStop : null;
}

/** All engines stand still, the first since `pausedAt`: ranks may swap. */
export function enginesPaused(state: FleetState, call: HookCall, pausedAt: number, now: number): void {
  const stop = settle(state, call);
  if (stop === null) return;
  stop.phase = "paused";
  stop.pausedAt = pausedAt;
  const record = recordOf(state, stop);
  if (record !== null) signal(state, record, now);
}

/** An engine did not pause. `abort`: the reload fails, nothing live has changed. `proceed`: ranks swap all the same. */
export function pauseFailed(state: FleetState, call: HookCall, error: ErrorReport, now: number): void {
  const stop = settle(state, call);
  const record = stop === null ? null : recordOf(state, stop);
  if (stop === null || record === null) return;
  if (stop.hooks.onFailure === "abort") {
    failNow(state, record, { ...error, retryable: false }, now);
    return;
  }
  stop.phase = "paused"; // some may be: all are resumed
  stop.pausedAt = now;
  record.warnings.push({ code: error.code, message: error.message, details: { ...error.details } });
  signal(state, record, now);
}

/** The last of them at `resumedAt`. */
export function enginesResumed(state: FleetState, call: HookCall, resumedAt: number): void {
  const stop = settle(state, call);
  if (stop === null) return;
  const record = recordOf(state, stop);
  if (record !== null && stop.pausedAt !== null) record.engineStop = { startedAt: stop.pausedAt, endedAt: resumedAt };
  state.engineStop = null;
}

/** Shorter than the time between two sweeps, so that each of them tries. */
const RESUME_AGAIN_AFTER_MS = 500;

/** An engine was not resumed: the next sweep tries again, and the fleet is not routable meanwhile. */
export function resumeFailed(state: FleetState, call: HookCall, error: ErrorReport, now: number): void {
  const stop = settle(state, call);
  if (stop === null) return;
  stop.failure = error;
  stop.caller = { name: call.name, until: now + RESUME_AGAIN_AFTER_MS }; // nobody calls meanwhile
  const warnings = recordOf(state, stop)?.warnings;
  if (warnings?.every(({ message }) => message !== error.message)) {
    warnings.push({ code: error.code, message: error.message, details: { ...error.details } });
  }
}

/** The reload that they stand still for, while it is unfinished. */
function recordOf(state: FleetState, stop: EngineStop): ReloadRecord | null {
  const record = activeReload(state);
  return record?.id === stop.reload && record.epoch === stop.epoch ? record : null;
}
