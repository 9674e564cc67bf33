// An engine that computes with a fleet's arenas, as a process: fake_engine.py, and what it says.

import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { expect } from "vitest";
import type { Cluster } from "./cluster.js";

export interface FakeEngine {
  id: string;
  said: Record<string, unknown>[];
  child: ChildProcessWithoutNullStreams;
  /** Resolves with what it said that has this field, of what it has said since it was asked last. */
  says(field: string): Promise<Record<string, unknown>>;
  order(line: "ready" | "hold" | "steps"): void;
  /** What it has computed with: "epoch version" -> the one digest of it. Fails where a step saw two things. */
  seen(): Promise<Map<string, string>>;
  kill(): Promise<void>;
}

let started = 0;

export function startFakeEngine(cluster: Cluster): FakeEngine {
  started += 1;
  const id = `fake-${started}-0`;
  const replica = join(cluster.runDir, cluster.fleet, "replica-0");
  const script = join(import.meta.dirname, "fake_engine.py");
  const child = spawn("python3", [script, id, replica, String(cluster.tp)]);
  const said: Record<string, unknown>[] = [];
  let errors = "";
  createInterface({ input: child.stdout }).on("line", (line) => void said.push(JSON.parse(line)));
  child.stderr.on("data", (chunk: Buffer) => {
    errors += chunk.toString();
  });
  child.stdin.on("error", () => {});
  let heard = 0;
  const engine: FakeEngine = {
    id,
    said,
    child,
    says: (field) =>
      cluster.until(`engine ${id} to say ${field} (${errors})`, async () => {
        const at = said.findIndex((what, index) => index >= heard && field in what);
        if (at === -1) return null;
        heard = at + 1;
        return said[at] ?? null;
      }),
    order: (line) => void child.stdin.write(`${line}\n`),
    async seen() {
      engine.order("steps");
      const { steps, mixes } = await engine.says("steps");
      expect(mixes).toEqual([]);
      const entries = Object.entries(steps as Record<string, string[]>);
      for (const [of, digests] of entries) expect(digests, of).toHaveLength(1);
      return new Map(entries.map(([of, [digest = ""]]) => [of, digest]));
    },
    async kill() {
      if (child.exitCode !== null || child.signalCode !== null) return;
      child.kill("SIGKILL");
      await once(child, "exit");
    },
  };
  return engine;
}

/** Up to when it may be stopped. */
export async function startReadyEngine(cluster: Cluster): Promise<FakeEngine> {
  const engine = startFakeEngine(cluster);
  await engine.says("state");
  engine.order("ready");
  await cluster.fleetWhere(({ attached_engines }) =>
    attached_engines.some(({ id, state }) => id === engine.id && state === "ready"),
  );
  return engine;
}
