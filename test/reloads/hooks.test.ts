// Laws of a fleet's hooks and of how its view shows engines that stand still.

import { beforeEach, describe, expect, it } from "vitest";
import { LayercastError } from "../../orchestrator/contract/errors.js";
import {
  claimHookCall,
  enginesPaused,
  enginesResumed,
  type HookCall,
  hookDue,
  pauseFailed,
  renewHookCall,
  resumeFailed,
  setHooks,
} from "../../orchestrator/fleet/engine-transitions.js";
import { cancel } from "../../orchestrator/fleet/reload-transitions.js";
import type { EngineStop, Hooks } from "../../orchestrator/fleet/state.js";
import { viewFleet } from "../../orchestrator/reloads/view.js";
import { type TestFleet, testFleet } from "./fleet.js";

const hooksAt = (...hosts: string[]): Hooks => ({
  pause: { urls: hosts.map((host) => `http://${host}/pause`), method: "POST", body: null },
  resume: { urls: hosts.map((host) => `http://${host}/resume`), method: "POST", body: null },
  timeoutMs: 1_000,
  onFailure: "abort",
});
const FAILED = { code: "hook_failed", message: "the resume hook answered 500", retryable: true, details: {} } as const;

let fleet: TestFleet;
beforeEach(() => {
  fleet = testFleet(1);
  fleet.apply((draft) => setHooks(draft, hooksAt("old")));
});

const view = () => viewFleet(fleet.state, fleet.context, null);

let claims = 0;
function claim(): { stop: EngineStop; call: HookCall } {
  claims += 1;
  const name = `claim-${claims}`;
  const stop = fleet.apply((draft, { now }) => claimHookCall(draft, name, now));
  if (stop === null) throw new Error("there was no call to claim");
  return { stop, call: { name, epoch: stop.epoch, phase: stop.phase } };
}

function toPausing(): void {
  fleet.submit("r1");
  fleet.load();
  fleet.prepare(0);
  fleet.decide();
}

function toResuming(): void {
  toPausing();
  const { call } = claim();
  fleet.apply((draft, { now }) => enginesPaused(draft, call, now, now));
  fleet.swap(0);
}

function failResume(): void {
  const { call } = claim();
  fleet.apply((draft, { now }) => resumeFailed(draft, call, FAILED, now));
}

describe("setting hooks", () => {
  it("refuses another number of urls than there are replicas, unless it is one", () => {
    const refused = () => fleet.apply((draft) => setHooks(draft, hooksAt("a", "b")));
    expect(refused).toThrow(LayercastError);
    expect(refused).toThrow(/has 1 replica and the hook names 2 urls/);
    expect(fleet.state.hooks).toEqual(hooksAt("old"));
  });

  it("leaves a stop that is under way the hooks it began with", () => {
    toPausing();
    fleet.apply((draft) => setHooks(draft, hooksAt("new")));
    expect(fleet.state.engineStop?.hooks).toEqual(hooksAt("old"));
  });

  it("corrects a resume that fails, which is then tried with the new ones", () => {
    toResuming();
    failResume();
    fleet.apply((draft) => setHooks(draft, hooksAt("new")));
    fleet.now += 1_000;
    expect(claim().stop.hooks.resume.urls).toEqual(["http://new/resume"]);
  });

  it("to none gives a resume up that fails, and the fleet is routable again", () => {
    toResuming();
    failResume();
    expect(fleet.state).toMatchObject({ routable: false, notRoutableReason: `hook_failed: ${FAILED.message}` });
    fleet.apply((draft) => setHooks(draft, null));
    expect(fleet.state).toMatchObject({ engineStop: null, routable: true });
  });
});

describe("a pause that was called for a reload which has ended since", () => {
  const endWhilePausing = () => {
    fleet.submit("r1", { inPlace: true });
    fleet.load();
    const { call } = claim();
    fleet.apply((draft, { now }) => cancel(draft, "r1", now));
    fleet.submit("r2", { inPlace: true });
    fleet.load();
    return call;
  };

  it("keeps the next one's calls waiting, and lets no rank write for it", () => {
    const call = endWhilePausing();
    const next = () => fleet.apply((draft, { now }) => claimHookCall(draft, "next", now));
    expect(next()).toBeNull();
    fleet.apply((draft, { now }) => enginesPaused(draft, call, now, now));
    expect(fleet.active()).toMatchObject({ id: "r2", times: { signalled: null } });
    expect(next()).toMatchObject({ reload: "r2", phase: "pausing" });
  });

  it("is not begun any more", () => {
    const call = endWhilePausing();
    expect(fleet.apply((draft, { now }) => renewHookCall(draft, call, now))).toBe(false);
    expect(claim().stop).toMatchObject({ reload: "r2", phase: "pausing" });
  });
});

describe("a resume that fails", () => {
  it("is not tried again at once, however often somebody looks, and is at the next sweep", () => {
    toResuming();
    failResume();
    expect(hookDue(fleet.state)).toBe("resume");
    const tried = () => fleet.apply((draft, { now }) => claimHookCall(draft, "next", now));
    expect(tried()).toBeNull();
    fleet.now += 1_000;
    expect(tried()).not.toBeNull();
  });
});

describe("the fleet's view", () => {
  it("shows the engines at every step of a commit, and for which reload they stand still", () => {
    const seen = [view().engines.state];
    toPausing();
    seen.push(view().engines.state);
    expect(view().engines).toEqual({ state: "pausing", reload_id: "r1", error: null });
    const pause = claim();
    fleet.apply((draft, { now }) => enginesPaused(draft, pause.call, now, now));
    seen.push(view().engines.state);
    fleet.swap(0);
    seen.push(view().engines.state);
    const resume = claim();
    fleet.apply((draft, { now }) => enginesResumed(draft, resume.call, now));
    seen.push(view().engines.state);
    expect(seen).toEqual(["running", "pausing", "paused", "resuming", "running"]);
    expect(view()).toMatchObject({ has_hooks: true, routable: true });
  });

  it("shows why engines do not resume", () => {
    toResuming();
    failResume();
    expect(view().engines).toEqual({ state: "resuming", reload_id: "r1", error: FAILED });
  });

  it("shows engines as resuming after a pause that failed, for some may have paused", () => {
    toPausing();
    const { call } = claim();
    fleet.apply((draft, { now }) => pauseFailed(draft, call, FAILED, now));
    expect(view().engines).toMatchObject({ state: "resuming", reload_id: "r1" });
    expect(view().active_reload_id).toBeNull();
  });

  it("shows a drained replica, its ranks, and a rank of Redis's last life as not there", () => {
    expect(view()).toMatchObject({ drained_replicas: [], ranks: [{ alive: true, drained: false }] });
    fleet.apply((draft) => {
      draft.drained[0] = "joining";
    });
    expect(view()).toMatchObject({ drained_replicas: [{ replica: 0, state: "joining" }], ranks: [{ drained: true }] });
    fleet.redisRunId = "second";
    expect(view().ranks[0]?.alive).toBe(false);
  });
});
