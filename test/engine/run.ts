// What the tests with a real engine share: which Python has it, its flags, and commits that must succeed.

import { expect } from "vitest";
import { type Cluster, checkpoint } from "../e2e/cluster.js";

/** Of the environment that deploy/engine-venv.sh makes. */
export const PYTHON = process.env.LAYERCAST_ENGINE_PYTHON ?? "";

/** As `layercast engine-args vllm` prints them. */
export async function engineFlags(cluster: Cluster): Promise<string[]> {
  const { code, out, err } = await cluster.cli("engine-args", "vllm", "--json");
  expect(err).toBe("");
  expect(code).toBe(0);
  return (JSON.parse(out) as { args: string[] }).args;
}

export interface Run {
  commit(version: string): Promise<void>;
  rollBack(): Promise<void>;
}

/** Reloads of one model, each of which must commit. */
export function wholeRun(cluster: Cluster, model: string, recipe: { scheme: string }): Run {
  const { client, fleet } = cluster;
  return {
    async commit(version) {
      const reload = await cluster.reload({ source: checkpoint(model, version), recipe, weight_version: version });
      expect(reload.error).toBeNull();
      expect(reload.state).toBe("committed");
    },
    async rollBack() {
      const { reload_id } = await client.rollback(fleet, {});
      const reload = await cluster.ended(reload_id);
      expect(reload.error).toBeNull();
      expect(reload.state).toBe("committed");
    },
  };
}
