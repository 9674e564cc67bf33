// What the Python package sees of a real fleet: the known bytes, in the buffers it took once, whatever the workers do.

import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { Golden } from "../../orchestrator/cli/compare-tensors.js";
import { type Cluster, checkpoint, FIXTURES, startCluster } from "./cluster.js";

const PACKAGE = join(import.meta.dirname, "../../worker/python");
const TP = 2;
const RANK = 1;

/** The consumer's process; each question is answered once, in order. */
interface Consumer {
  ask<Answer>(line: string): Promise<Answer>;
  child: ChildProcessWithoutNullStreams;
}

let cluster: Cluster;
const consumers: Consumer[] = [];
beforeAll(async () => {
  cluster = await startCluster({ tp: TP });
});
afterEach(() => {
  for (const { child } of consumers.splice(0)) child.kill("SIGKILL");
});
afterAll(() => cluster.stop());

describe("a Python consumer", () => {
  it("finds the known bytes, and the next version's in the same buffers when it has waited for it", async () => {
    await reload("v1", "1");
    const consumer = await startConsumer();
    expect(await consumer.ask("look")).toEqual({ version: "1", tensors: golden("v1") });
    const next = consumer.ask("wait 2");
    await reload("v2", "2");
    expect(await next).toEqual({ version: "2", tensors: golden("v2") });
  });

  it("reads each version whole while reloads go on", async () => {
    await reload(nameOf(10), "10");
    const consumer = await startConsumer();
    const followed = consumer.ask<{ seen: Record<string, Golden> }>("follow 16");
    for (let version = 11; version <= 16; version++) await reload(nameOf(version), String(version));
    const { seen } = await followed;
    expect(Object.keys(seen).length).toBeGreaterThan(2);
    for (const [version, tensors] of Object.entries(seen)) expect(tensors).toEqual(golden(nameOf(Number(version))));
  });

  it("keeps what it has mapped when the worker dies and comes back", async () => {
    await reload("v3", "20");
    const consumer = await startConsumer();
    const before = cluster.pidOf(`worker 0/${RANK}`);
    process.kill(before, "SIGKILL");
    expect(await consumer.ask("look")).toEqual({ version: "20", tensors: golden("v3") });
    await cluster.fleetWhere((fleet) => fleet.routable && fleet.ranks[RANK]?.pid !== before);
    await reload("v1", "21");
    expect(await consumer.ask("wait 21")).toEqual({ version: "21", tensors: golden("v1") });
  });

  it("is told when another layout replaces the arena, and finds it when it attaches again", async () => {
    await reload("v2", "30");
    const consumer = await startConsumer();
    await reload("v2", "31", "none");
    expect(await consumer.ask("wait 31")).toMatchObject({ error: "arena_replaced" });
    expect(await consumer.ask("attach")).toEqual({ version: "31", tensors: golden("v2", "none") });
  });
});

const nameOf = (version: number) => (["v1", "v2", "v3"] as const)[version % 3] ?? "v1";

async function reload(name: "v1" | "v2" | "v3", weightVersion: string, scheme = "fp8-channel"): Promise<void> {
  const ended = await cluster.reload({
    source: checkpoint("tiny-qwen3", name),
    weight_version: weightVersion,
    recipe: { scheme },
    install: { allow_new_layout: true },
  });
  expect(ended).toMatchObject({ state: "committed", error: null });
}

function golden(name: string, scheme = "fp8-channel"): Golden {
  const all = JSON.parse(readFileSync(join(FIXTURES, "goldens", `tiny-qwen3-${name}.json`), "utf8"));
  return all[`tp${TP}/rank${RANK}/${scheme}`];
}

async function startConsumer(): Promise<Consumer> {
  const directory = join(cluster.runDir, cluster.fleet, "replica-0", `rank-${RANK}`);
  const child = spawn("python3", ["-B", join(import.meta.dirname, "consume.py"), directory], {
    env: { ...process.env, PYTHONPATH: PACKAGE },
  });
  const said: string[] = [];
  child.stderr.setEncoding("utf8").on("data", (text: string) => void said.push(text));
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const answer = async () => {
    const { value, done } = await lines.next();
    if (done) throw new Error(`the consumer ended: ${said.join("")}`);
    return JSON.parse(value);
  };
  const consumer: Consumer = {
    child,
    ask(line) {
      child.stdin.write(`${line}\n`);
      return answer();
    },
  };
  consumers.push(consumer);
  expect(await answer()).toEqual({ attached: true });
  return consumer;
}
