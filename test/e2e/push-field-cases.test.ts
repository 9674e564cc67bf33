// What went wrong with weight updates elsewhere, tried on a real fleet: each push ends with the bytes that an independent program
// computed, or with those that were there before.

import { randomUUID } from "node:crypto";
import { readFileSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Golden } from "../../orchestrator/cli/compare-tensors.js";
import type { ReloadView } from "../../orchestrator/contract/reload.js";
import { type Cluster, FIXTURES, startCluster } from "./cluster.js";
import { bucketBytes, type PushSession, type PushTensors, pushOf, pushOfFixture, type Rows } from "./push-session.js";

const RANKS = 2;
const NEW_LAYOUT = { install: { allow_new_layout: true } };

let cluster: Cluster;
beforeAll(async () => {
  cluster = await startCluster({ tp: RANKS });
});
afterAll(() => cluster.stop());

/** What each rank must hold. */
function goldensOf(name: string, recipe: string): Golden[] {
  const file = readFileSync(join(FIXTURES, "goldens", `${name}.json`), "utf8");
  const goldens = JSON.parse(file) as Record<string, Golden>;
  return Array.from({ length: RANKS }, (_, rank) => goldens[`tp${RANKS}/rank${rank}/${recipe}`] ?? {});
}

function open(tensors: PushTensors, scheme: string, source: Record<string, unknown> = {}): Promise<PushSession> {
  return tensors.open(cluster, { recipe: { scheme }, ...NEW_LAYOUT }, source);
}

async function commits(push: PushSession): Promise<ReloadView> {
  const reload = await push.finish();
  expect(reload.error).toBeNull();
  expect(reload.state).toBe("committed");
  return reload;
}

async function commitsTo(push: PushSession, goldens: readonly Golden[]): Promise<ReloadView> {
  const reload = await commits(push);
  expect(await cluster.exportAll()).toEqual(goldens);
  return reload;
}

/** The fleet holds this version of tiny-qwen3, as fp8-tensor. */
async function holdsQwen(version: string): Promise<Golden[]> {
  const push = await open(pushOfFixture("tiny-qwen3", version), "fp8-tensor");
  await push.send(pushOfFixture("tiny-qwen3", version).names);
  const goldens = goldensOf(`tiny-qwen3-${version}`, "fp8-tensor");
  await commitsTo(push, goldens);
  return goldens;
}

/** Each in a bucket of its own, dealt so that modules of all layers fill at the same time. */
const scattered = (names: readonly string[]) =>
  [...names].sort((a, b) => a.split(".").reverse().join().localeCompare(b.split(".").reverse().join()));

describe("a parameter that the trainer forgets", () => {
  const CORRECTION = "model.layers.1.mlp.gate.e_score_correction_bias";
  const model = pushOfFixture("tiny-deepseek-v3", "v1");

  it("is named at the end, however small it is, and holds nothing else up: its experts were long written", async () => {
    const push = await open(model, "fp8-tensor");
    const last = await push.send(model.names.filter((name) => name !== CORRECTION));
    await push.consumed(last);
    const early = cluster.client.finish(push.reload.reload_id);
    await expect(early).rejects.toMatchObject({ code: "tensor_missing", details: { tensors: [CORRECTION], count: 1 } });
    const { ranks } = await cluster.client.reload(push.reload.reload_id);
    expect(ranks.map(({ push: shown }) => shown?.buffers.modules)).toEqual(ranks.map(() => []));
    await push.send([CORRECTION]);
    await commitsTo(push, goldensOf("tiny-deepseek-v3-v1", "fp8-tensor"));
  });
});

describe("biases that come between weights", () => {
  it("are neither lost nor complete their module early", async () => {
    const model = pushOfFixture("tiny-qwen2-moe", "v1");
    const biases = model.names.filter((name) => name.endsWith(".bias"));
    expect(biases.length).toBeGreaterThan(0);
    const others = model.names.filter((name) => !biases.includes(name));
    const push = await open(model, "fp8-tensor");
    while (others.length > 0) {
      await push.send([others.shift() ?? ""]);
      const bias = biases.shift();
      if (bias !== undefined) await push.send([bias]);
    }
    await commitsTo(push, goldensOf("tiny-qwen2-moe-v1", "fp8-tensor"));
  });
});

describe("what is made of another tensor, and what nobody sends", () => {
  it("follows a partial push of that tensor, and scales that do not come keep their bytes", async () => {
    const model = pushOfFixture("tiny-deepseek-v2", "v1");
    const goldens = goldensOf("tiny-deepseek-v2-v1", "fp8-channel");
    const whole = await open(model, "fp8-channel");
    await whole.send(model.names);
    await commitsTo(whole, goldens);
    // Layer 0 is given what layer 1 has.
    const kvb = (layer: number) => `model.layers.${layer}.self_attn.kv_b_proj.weight`;
    const changed = pushOf(new Map(model.tensors), model.config);
    changed.tensors.set(kvb(0), model.tensors.get(kvb(1)) ?? { dtype: "BF16", shape: [], bytes: new Uint8Array() });
    const push = await open(changed, "fp8-channel", { partial: true });
    await push.send([kvb(0)]);
    const isMadeOfIt = (name: string) =>
      name.includes(".layers.0.self_attn.kv_b_proj.") || name.includes(".0.self_attn.mla_attn.W_");
    const expected = goldens.map((golden) =>
      Object.fromEntries(
        Object.entries(golden).map(([name, digest]) => {
          const from = isMadeOfIt(name) ? name.replace(".layers.0.", ".layers.1.") : name;
          return [name, golden[from] ?? digest];
        }),
      ),
    );
    expect(expected).not.toEqual(goldens);
    await commitsTo(push, expected);
  });
});

describe("a trainer with one buffer for everything it sends", () => {
  it.each(["spool", "trainer"])(
    "may write over it once it is consumed: what waits in a rank is the rank's own (retain: %s)",
    async (retain) => {
      const model = pushOfFixture("tiny-qwen3", "v1");
      const path = join(cluster.sources, `reused-${retain}.safetensors`);
      const push = await open(model, "fp8-tensor", { retain });
      for (const name of scattered(model.names)) {
        writeFileSync(path, bucketBytes(model.tensors, [name]));
        await push.consumed(await push.post(pathToFileURL(path).href));
      }
      writeFileSync(path, "nothing of it is left");
      await commitsTo(push, goldensOf("tiny-qwen3-v1", "fp8-tensor"));
    },
  );
});

describe("a model of many experts in the worst order", () => {
  it("is warned about once with its ranks, not once for each tensor", async () => {
    const model = pushOfFixture("tiny-qwen3-moe", "v1");
    const push = await open(model, "fp8-tensor");
    for (const name of scattered(model.names)) await push.send([name]);
    const { reload_id, warnings } = await commitsTo(push, goldensOf("tiny-qwen3-moe-v1", "fp8-tensor"));
    expect(warnings.map(({ code, details }) => [code, details.ranks])).toEqual([["out_of_order", ["0/0", "0/1"]]]);
    const events: string[] = [];
    for await (const { name } of cluster.client.events(reload_id, null, AbortSignal.timeout(10_000))) events.push(name);
    expect(events.filter((name) => name === "warning")).toHaveLength(1);
    expect(events).not.toContain("retry");
  });
});

describe("the config", () => {
  it("is kept with the push: an orchestrator that did not open it goes on with it", async () => {
    const model = pushOfFixture("tiny-qwen3", "v2");
    const push = await open(model, "fp8-tensor", { tensors: undefined });
    process.kill(cluster.pidOf("orchestrator"), "SIGKILL");
    await cluster.whenAnswering();
    await push.send(model.names);
    await commitsTo(push, goldensOf("tiny-qwen3-v2", "fp8-tensor"));
  });

  it("of another model than the one that is served is refused before a byte is sent", async () => {
    const held = await holdsQwen("v1");
    const { config } = pushOfFixture("tiny-qwen3", "v1");
    const body = { fleet: cluster.fleet, submission_id: randomUUID(), recipe: { scheme: "fp8-tensor" } };
    const other = { ...config, intermediate_size: 2 * Number(config.intermediate_size) };
    const { reload_id } = await cluster.client.submit({ ...body, source: { kind: "push", config: other } });
    const reload = await cluster.ended(reload_id);
    expect(reload).toMatchObject({ state: "failed", live_changed: false, error: { code: "layout_changed" } });
    expect(await cluster.exportAll()).toEqual(held);
  });
});

describe("files of the same names, sizes and times", () => {
  it("are read anew by the next push", async () => {
    const versions = ["v1", "v2"].map((version) => pushOfFixture("tiny-qwen3", version));
    const path = join(cluster.sources, "same.safetensors");
    const files: [inode: number, size: number, mtimeMs: number][] = [];
    for (const [at, model] of versions.entries()) {
      writeFileSync(path, bucketBytes(model.tensors, model.names));
      utimesSync(path, 1_000_000, 1_000_000);
      const { ino, size, mtimeMs } = statSync(path);
      files.push([ino, size, mtimeMs]);
      const push = await open(model, "fp8-tensor");
      await push.post(pathToFileURL(path).href);
      await commitsTo(push, goldensOf(`tiny-qwen3-v${at + 1}`, "fp8-tensor"));
    }
    expect(files[1]).toEqual(files[0]);
  });
});

describe("a last bucket that cannot be loaded", () => {
  const LAST = "model.layers.1.mlp.down_proj.weight";
  const bad = pushOfFixture("tiny-qwen3", "v2");
  bad.tensors.get(LAST)?.bytes.set([0x80, 0x7f]); // BF16 infinity
  const fails = async (mode: string): Promise<ReloadView> => {
    const push = await bad.open(cluster, { recipe: { scheme: "fp8-tensor" }, install: { mode } });
    await push.consumed(await push.send(bad.names.filter((name) => name !== LAST)));
    await push.send([LAST]);
    return cluster.ended(push.reload.reload_id);
  };

  it("leaves no mix of old and new: staged, the old weights are served on", async () => {
    const held = await holdsQwen("v1");
    const reload = await fails("staged");
    expect(reload).toMatchObject({ state: "failed", live_changed: false, error: { code: "non_finite_weights" } });
    expect(await cluster.exportAll()).toEqual(held);
    expect(await cluster.client.fleet(cluster.fleet)).toMatchObject({ routable: true, torn: false });
  });

  it("leaves a mix in place, which is not served: the fleet is not routable until whole weights are there", async () => {
    await holdsQwen("v1");
    const reload = await fails("in_place");
    const error = { code: "fleet_torn", details: { cause: { code: "non_finite_weights" } } };
    expect(reload).toMatchObject({ state: "failed", live_changed: true, error });
    expect(await cluster.client.fleet(cluster.fleet)).toMatchObject({ routable: false, torn: true });
    await holdsQwen("v1");
    expect(await cluster.client.fleet(cluster.fleet)).toMatchObject({ routable: true, torn: false });
  });
});

describe("experts stacked into one tensor", () => {
  it.each(["fp8-tensor", "fp8-block"])("may come one by one, the last first, as %s", async (scheme) => {
    const model = pushOfFixture("tiny-qwen3-moe-stacked", "v1");
    const isStack = (name: string) => (model.tensors.get(name)?.shape.length ?? 0) === 3;
    const stacks = model.names.filter(isStack);
    expect(stacks.length).toBeGreaterThan(3);
    const push = await open(model, scheme);
    for (const from of [2, 1, 0]) {
      const experts = stacks.map((name): Rows => ({ name, from, to: from + 1 }));
      for (const expert of experts) await push.send([expert]);
    }
    await push.send(model.names.filter((name) => !isStack(name)));
    await commitsTo(push, goldensOf("tiny-qwen3-moe-stacked-v1", scheme));
  });
});

describe("a bucket that is sent as a body", () => {
  const model = pushOfFixture("tiny-qwen3", "v2");

  /** Sends the first part of a body, and hangs up. */
  function breakOff(reload: string, bucket: number, bytes: Uint8Array): Promise<void> {
    const url = new URL(`/v1/reloads/${reload}/buckets/${bucket}`, cluster.client.url);
    const headers = { "content-type": "application/octet-stream", "content-length": bytes.byteLength };
    return new Promise((resolve) => {
      const sent = request(url, { method: "PUT", headers });
      sent.on("error", () => resolve()).on("response", () => resolve());
      sent.write(bytes.subarray(0, Math.floor(bytes.byteLength / 2)), () => setTimeout(() => sent.destroy(), 50));
    });
  }

  const put = (push: PushSession, bucket: number, bytes: Uint8Array) =>
    cluster.client.putBucket(push.reload.reload_id, bucket, {
      sizeBytes: bytes.byteLength,
      async *chunks() {
        yield bytes;
      },
    });

  it("is whole after a try that broke off halfway: a retry begins anew, with nothing of it left", async () => {
    const push = await open(model, "fp8-tensor");
    const { reload_id } = push.reload;
    for (const [number, names] of [model.names.slice(0, 9), model.names.slice(9)].entries()) {
      const bytes = bucketBytes(model.tensors, names);
      await breakOff(reload_id, number, bytes);
      await expect(cluster.client.bucket(reload_id, number, 0)).rejects.toMatchObject({ code: "not_found" });
      const view = await put(push, number, bytes);
      expect(await push.consumed(view)).toMatchObject({ bucket: number, state: "consumed" });
    }
    await commitsTo(push, goldensOf("tiny-qwen3-v2", "fp8-tensor"));
  });

  it("and sent again after it was consumed is the same bucket, of which nothing is written twice", async () => {
    const push = await open(model, "fp8-tensor");
    const bytes = bucketBytes(model.tensors, model.names);
    const view = await put(push, 0, bytes);
    await push.consumed(view);
    expect(await put(push, 0, bytes)).toMatchObject({ bucket: 0, state: "consumed" });
    const { push: shown } = await commitsTo(push, goldensOf("tiny-qwen3-v2", "fp8-tensor"));
    expect(shown?.buckets).toEqual({ accepted: 1, consumed: 1, wanted: [] });
  });
});

describe("a head that is the embedding", () => {
  it("comes with the embedding, once, and a redundant copy of it is ignored, whatever it holds", async () => {
    const model = pushOfFixture("tiny-llama", "v1");
    const embed = model.tensors.get("model.embed_tokens.weight");
    expect([model.config.tie_word_embeddings, model.names.includes("lm_head.weight")]).toEqual([true, false]);
    const push = await open(model, "fp8-tensor");
    const stale = {
      dtype: "BF16" as const,
      shape: embed?.shape ?? [],
      bytes: new Uint8Array(embed?.bytes.byteLength ?? 0),
    };
    const path = join(cluster.sources, "redundant.safetensors");
    writeFileSync(path, bucketBytes(new Map([["lm_head.weight", stale]]), ["lm_head.weight"]));
    await push.consumed(await push.post(pathToFileURL(path).href));
    await push.send(model.names);
    await commitsTo(push, goldensOf("tiny-llama-v1", "fp8-tensor"));
  });
});
