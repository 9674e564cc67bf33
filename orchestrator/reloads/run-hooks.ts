// A hook call from claim to outcome (P12): recorded before it is made, by one orchestrator at a time.

import { reportError } from "../contract/errors.js";
import {
  claimHookCall,
  enginesPaused,
  enginesResumed,
  type HookCall,
  hookDue,
  isCalling,
  pauseFailed,
  renewHookCall,
  resumeAfterLatePause,
  resumeFailed,
} from "../fleet/engine-transitions.js";
import type { EngineStop, FleetState } from "../fleet/state.js";
import { faultPoint } from "../host/fault-point.js";
import type { EngineCall } from "./call-engines.js";
import type { DriveDeps } from "./deps.js";

let claims = 0;

/** Less than the grace that a claim has beyond the call's own limit: no call is begun that another may make by then. */
const BEGIN_WITHIN_MS = 1_000;

/** Makes the call that is due, if nobody else does. */
export async function runHook(deps: DriveDeps, fleet: string): Promise<void> {
  claims += 1;
  const name = `${deps.name}.${claims}`;
  let askedAt = performance.now();
  const { result: stop, state } = await deps.store.transact(fleet, (draft, { now }) => {
    const claimed = claimHookCall(draft, name, now);
    return claimed === null ? null : structuredClone(claimed);
  });
  const what = hookDue(state);
  if (stop === null || what === null) return;
  const call: HookCall = { name, epoch: stop.epoch, phase: stop.phase };
  if (what === "pause" && !(await deps.disk.atOnce())) {
    // A pause that Redis may forget would never be followed by a resume.
    await deps.disk.wait();
    askedAt = performance.now();
    if (!(await renewed(deps, fleet, call))) return;
  }
  await faultPoint(`orchestrator.${stop.phase}`);
  if (performance.now() - askedAt > BEGIN_WITHIN_MS) {
    deps.log.warn(
      { fleet, reload: stop.reload },
      `too late to ${what} engines: the next sweep, or another process, does`,
    );
    return;
  }
  if (what === "pause") await pause(deps, state, stop, call, askedAt + BEGIN_WITHIN_MS + stop.hooks.timeoutMs);
  else await resume(deps, state, stop, call);
}

/** False when the claim is not there any more: Redis may have come back without it while its disk was waited for. */
async function renewed(deps: DriveDeps, fleet: string, call: HookCall): Promise<boolean> {
  const { result } = await deps.store.transact(fleet, (draft, { now }) => renewHookCall(draft, call, now));
  return result;
}

/** Engines that answer after `goodUntil` may have paused after the resume of who took the call over. */
async function pause(
  deps: DriveDeps,
  state: FleetState,
  stop: EngineStop,
  call: HookCall,
  goodUntil: number,
): Promise<void> {
  try {
    const agoMs = await deps.callEngines(describe("pause", state, stop, false));
    const answered = performance.now() - agoMs;
    await faultPoint("orchestrator.paused");
    await deps.store.transact(state.fleet, (draft, { now }) => {
      if (answered > goodUntil && !isCalling(draft, call)) return resumeAfterLatePause(draft, stop);
      enginesPaused(draft, call, now - (performance.now() - answered), now);
    });
  } catch (error) {
    const report = reportError(error);
    if (report.code !== "hook_failed") throw error;
    const isLate = performance.now() > goodUntil;
    deps.log.warn({ fleet: state.fleet, reload: stop.reload, err: error }, "engines did not pause");
    await deps.store.transact(state.fleet, (draft, { now }) => {
      if (isLate && !isCalling(draft, call)) return resumeAfterLatePause(draft, stop); // some may have paused
      pauseFailed(draft, call, report, now);
    });
  }
}

async function resume(deps: DriveDeps, state: FleetState, stop: EngineStop, call: HookCall): Promise<void> {
  try {
    // It may have been paused before its replica was drained, and may be gone: nobody waits for its answer.
    deps.callEngines(describe("resume", state, stop, true)).catch(() => {});
    await deps.callEngines(describe("resume", state, stop, false));
    const answered = performance.now();
    await faultPoint("orchestrator.resumed");
    await deps.store.transact(state.fleet, (draft, { now }) =>
      enginesResumed(draft, call, now - (performance.now() - answered)),
    );
  } catch (error) {
    const report = reportError(error);
    if (report.code !== "hook_failed") throw error;
    deps.log.warn({ fleet: state.fleet, reload: stop.reload, err: error }, "engines did not resume");
    await deps.store.transact(state.fleet, (draft, { now }) => resumeFailed(draft, call, report, now));
  }
}

/** `urls` of the replicas that the fleet waits for, or of those that are drained; one for the whole fleet counts as the first. */
function describe(what: EngineCall["what"], state: FleetState, stop: EngineStop, drained: boolean): EngineCall {
  const { reload, epoch, hooks } = stop;
  const request = hooks[what];
  const isOut = (replica: number) => request.urls.length > 1 && state.drained[replica] === "out";
  const urls = request.urls.filter((_, replica) => isOut(replica) === drained);
  return { what, request, urls, reload, epoch, timeoutMs: hooks.timeoutMs };
}
