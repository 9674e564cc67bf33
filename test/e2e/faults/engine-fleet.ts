// A fault fleet with an engine behind its hooks.

import { afterAll, beforeAll, beforeEach } from "vitest";
import { type Engine, startEngine } from "../engine.js";
import { describeFaults, type FaultFleet } from "./fault-fleet.js";

export interface EngineFleet extends FaultFleet {
  engine(): Engine;
  /** Sets the hooks again, with another limit or another say about failures. */
  hooks(more: { timeout_ms?: number; on_failure?: "abort" | "proceed" }): Promise<void>;
}

/** Each law begins with a running engine that has forgotten what was before, and hooks that abort. */
export function describeEngines(name: string, laws: (fleet: EngineFleet) => void): void {
  let engine: Engine | null = null;
  const running = () => {
    if (engine === null) throw new Error("the engine has not been started");
    return engine;
  };
  beforeAll(async () => {
    engine = await startEngine();
  });
  afterAll(() => engine?.close());
  describeFaults(name, { tp: 2 }, (fleet) => {
    const hooks: EngineFleet["hooks"] = async (more) => {
      const { url } = running();
      const pause = { url: `${url}/pause`, body: { mode: "keep" } };
      await fleet.cluster.client.setHooks(fleet.cluster.fleet, { pause, resume: { url: `${url}/resume` }, ...more });
    };
    beforeEach(async () => {
      running().reset();
      await hooks({});
    });
    laws(Object.defineProperties({ engine: running, hooks }, Object.getOwnPropertyDescriptors(fleet)) as EngineFleet);
  });
}
