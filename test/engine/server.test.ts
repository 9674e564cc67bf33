// A real server out of the arena, as `layercast engine-args` says: clients are answered through commits and deaths, each answer is that
// of one version, and the fleet knows the engine.

import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CHECKPOINTS, type Cluster, checkpoint, isAlive, startCluster } from "../e2e/cluster.js";
import { modelDirectory } from "./model-directory.js";
import { engineFlags, PYTHON, type Run, wholeRun } from "./run.js";
import { startServer, type VllmServer } from "./vllm.js";

const MODEL = "tiny-qwen3";
const PROMPT = [5, 6, 7, 8];
const NEW_TOKENS = 16;

let cluster: Cluster;
let run: Run;
let server: VllmServer;

async function ask(): Promise<string> {
  const body = { model: "m", prompt: PROMPT, max_tokens: NEW_TOKENS, temperature: 0, ignore_eos: true, logprobs: 0 };
  const answer = JSON.parse(await server.post("/v1/completions", { ...body, return_tokens_as_token_ids: true }));
  return JSON.stringify(answer.choices[0].logprobs.tokens);
}

const attached = async () => (await cluster.client.fleet(cluster.fleet)).attached_engines;
const untilReady = () =>
  cluster.until(
    "the engine to be ready",
    async () => (await attached()).find(({ state }) => state === "ready") ?? null,
  );

beforeAll(async () => {
  cluster = await startCluster({ tp: 1 });
  run = wholeRun(cluster, MODEL, { scheme: "none" });
  await run.commit("v1");
  server = await startServer({
    python: PYTHON,
    model: await modelDirectory(join(CHECKPOINTS, MODEL, "v1"), join(cluster.directory, "model")),
    args: [
      ...(await engineFlags(cluster)),
      "--dtype",
      "bfloat16",
      "--max-model-len",
      "256",
      "--enforce-eager",
      "--weight-transfer-config",
      `{"backend":"layercast"}`,
    ],
    env: { VLLM_CPU_KVCACHE_SPACE: "1", VLLM_SERVER_DEV_MODE: "1" },
    log: join(cluster.directory, "server.log"),
  });
  await untilReady();
});

afterAll(async () => {
  await server?.stop();
  await cluster?.stop();
});

describe("a server out of the arena", () => {
  /** By version, as first seen. */
  const answers: Record<string, string> = {};

  it("needs no weight files of its own, and is known to the fleet with its version", async () => {
    answers.v1 = await ask();
    const [engine] = await attached();
    expect(engine).toMatchObject({ name: "vllm", state: "ready" });
    expect(engine?.version).toMatch(/^0\.\d+/);
  });

  it("answers with the new weights after a commit, and with the old ones after a rollback", async () => {
    await run.commit("v2");
    answers.v2 = await ask();
    expect(answers.v2).not.toBe(answers.v1);
    await run.rollBack();
    expect(await ask()).toBe(answers.v1);
  });

  it("answers every request while commits go on, and says how long it stood still", async () => {
    let stopping = false;
    const seen = new Set<string>();
    const clients = Array.from({ length: 4 }, async () => {
      while (!stopping) seen.add(await ask());
    });
    try {
      for (let round = 0; round < 6; round++) {
        await run.commit(round % 2 === 0 ? "v2" : "v1");
        seen.add(await ask()); // begun and ended between two commits, however busy the machine is
      }
    } finally {
      stopping = true;
    }
    await Promise.all(clients);
    expect(seen).toContain(answers.v1);
    expect(seen).toContain(answers.v2);
    const [engine] = await attached();
    expect(engine?.last_stop?.still_ms).toBeGreaterThan(0);
    expect(await ask()).toBe(answers.v1);
  });

  it("is refused a new layout under it", async () => {
    const body = { recipe: { scheme: "fp8-channel" }, install: { allow_new_layout: true } };
    const refused = await cluster.reload({ source: checkpoint(MODEL, "v2"), ...body }).catch((error: unknown) => error);
    expect(JSON.stringify(refused)).toContain("engine_attached");
    expect(await ask()).toBe(answers.v1);
  });

  it("goes on without its worker, and follows the successor's commits", async () => {
    const killed = cluster.pidOf("worker 0/0");
    process.kill(killed, "SIGKILL");
    expect(await ask()).toBe(answers.v1);
    await cluster.until("the successor", async () => (isAlive(killed) ? null : await untilReady()));
    await cluster.fleetWhere(({ routable }) => routable);
    await run.commit("v2");
    expect(await ask()).toBe(answers.v2);
  });

  it.each(["worker.swap", "worker.swapped"])(
    "serves again, on one version, after its worker was killed at %s",
    async (point) => {
      const fault = cluster.fault(point, "kill");
      const before = await ask();
      const version = before === answers.v1 ? "v2" : "v1";
      await run.commit(version);
      await fault.hit();
      expect(await ask()).toBe(answers[version]);
    },
  );

  it("takes a drop-in update: /update_weights returns once the version is live", async () => {
    await server.post("/init_weight_transfer_engine", { init_info: {} });
    await server.post("/start_weight_update", { is_checkpoint_format: true });
    const update = server.post("/update_weights", {
      update_info: { weight_version: "next", timeout_s: 30, names: [] },
    });
    const body = { recipe: { scheme: "none" }, weight_version: "next" };
    const reload = await cluster.reload({ source: checkpoint(MODEL, "v3"), ...body });
    expect(reload.state).toBe("committed");
    await update;
    await server.post("/finish_weight_update");
    const now = await ask();
    expect(now).not.toBe(answers.v1);
    expect(now).not.toBe(answers.v2);
  });

  it("is gone from the fleet when it is killed, and commits go on", async () => {
    await server.stop();
    await cluster.until("the engine to be gone", async () =>
      (await attached()).every(({ state }) => state === "gone") ? true : null,
    );
    await run.commit("v1");
  });
});
