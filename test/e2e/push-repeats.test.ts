// Buckets that come more than once, ranks that are not equally fast, and a rank that has lost what nobody keeps.

import { copyFileSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { compareTensors, type Golden } from "../../orchestrator/cli/compare-tensors.js";
import type { ReloadView } from "../../orchestrator/contract/reload.js";
import { CHECKPOINTS, type Cluster, clearFaults, FIXTURES, startCluster } from "./cluster.js";
import { bucketBytes, pushOfFixture, type Rows } from "./push-session.js";

const MODEL = "tiny-qwen3";
const SCHEME = "fp8-tensor";
const TENSORS = pushOfFixture(MODEL, "v1");
const BODY = { recipe: { scheme: SCHEME }, install: { allow_new_layout: true } };

let cluster: Cluster;
let goldens: Record<string, Golden>;
beforeAll(async () => {
  goldens = JSON.parse(readFileSync(join(FIXTURES, "goldens", `${MODEL}-v1.json`), "utf8")) as typeof goldens;
  cluster = await startCluster({ tp: 2 });
});
afterEach(async () => {
  clearFaults(cluster);
  const { active_reload_id: left } = await cluster.client.fleet(cluster.fleet);
  if (left !== null) await cluster.client.cancel(left);
});
afterAll(() => cluster.stop());

async function expectGoldens({ state, error }: ReloadView): Promise<void> {
  expect({ state, error }).toEqual({ state: "committed", error: null });
  for (const [rank, found] of (await cluster.exportAll()).entries()) {
    const { differences } = compareTensors(found, goldens[`tp2/rank${rank}/${SCHEME}`] ?? {});
    expect(differences).toEqual([]);
  }
}

/** Each half of the tensors in parts, so that modules are filled by several buckets. */
function buckets(): (string | Rows)[][] {
  const halves = (half: 0 | 1) =>
    TENSORS.names.map((name): string | Rows => {
      const rows = TENSORS.tensors.get(name)?.shape[0] ?? 1;
      const middle = Math.floor(rows / 2);
      return half === 0 ? { name, from: 0, to: middle } : { name, from: middle, to: rows };
    });
  return [0, 1].flatMap((half) => {
    const all = halves(half as 0 | 1);
    const cut = Math.floor(all.length / 3);
    return [all.slice(0, cut), all.slice(cut, 2 * cut), all.slice(2 * cut)];
  });
}

describe("a bucket that is delivered twice", () => {
  it("is one bucket when the same file is named again, at once or after it was consumed", async () => {
    const push = await TENSORS.open(cluster, BODY);
    const uris = buckets().map((what) => push.write(what));
    for (const uri of uris) {
      const [first, second] = await Promise.all([push.post(uri), push.post(uri)]);
      expect(second.bucket).toBe(first.bucket);
      await push.consumed(first);
      expect((await push.post(uri)).bucket).toBe(first.bucket);
    }
    const ended = await push.finish();
    expect(ended.push?.buckets.accepted).toBe(uris.length);
    await expectGoldens(ended);
  });

  it("is one bucket when its bytes come again, in another file or as another body", async () => {
    const push = await TENSORS.open(cluster, BODY);
    const id = push.reload.reload_id;
    for (const [index, what] of buckets().entries()) {
      const bytes = Buffer.from(bucketBytes(TENSORS.tensors, what));
      const body = {
        sizeBytes: bytes.byteLength,
        chunks: async function* () {
          yield bytes;
        },
      };
      const answers = [];
      for (let time = 0; time < 2; time++) {
        answers.push(await cluster.until("a bucket to be accepted", () => putOrLater(id, index, body)));
      }
      expect(answers.map(({ bucket }) => bucket)).toEqual([index, index]);
    }
    await expectGoldens(await push.finish());

    const byFile = await TENSORS.open(cluster, BODY);
    for (const what of buckets()) {
      const uri = byFile.write(what);
      const copy = `${fileURLToPath(uri)}.copy.safetensors`;
      copyFileSync(fileURLToPath(uri), copy);
      const first = await byFile.post(uri);
      await byFile.consumed(first);
      expect((await byFile.post(pathToFileURL(copy).href)).bucket).toBe(first.bucket);
    }
    await expectGoldens(await byFile.finish());
  });

  it("is refused by name with other bytes, or cut otherwise, and what came first stays", async () => {
    const push = await TENSORS.open(cluster, BODY);
    const all = buckets();
    for (const what of all) await push.consumed(await push.send(what));
    const [first = []] = all;
    const changed = new Map(TENSORS.tensors);
    for (const [name, tensor] of changed) changed.set(name, { ...tensor, bytes: tensor.bytes.map((byte) => byte ^ 1) });
    const uri = push.write(first.slice(0, 1));
    const other = {
      sizeBytes: 0,
      chunks: async function* () {
        yield Buffer.from(bucketBytes(changed, first));
      },
    };
    const bytes = bucketBytes(changed, first).byteLength;
    await expect(push.post(uri)).rejects.toMatchObject({ code: "tensor_duplicate" });
    await expect(putOrLater(push.reload.reload_id, 0, { ...other, sizeBytes: bytes })).rejects.toMatchObject({
      code: "tensor_duplicate",
    });
    await expectGoldens(await push.finish());
  });
});

describe("ranks at different speeds", () => {
  it("take each bucket when they come to it; its memory is the trainer's again after the slower one", async () => {
    const push = await TENSORS.open(cluster, BODY);
    const id = push.reload.reload_id;
    const held = cluster.fault("worker.bucket@0-1", "wait");
    const sent = [];
    for (const what of buckets()) sent.push(await push.send(what));
    await held.hit();
    await cluster.until("all to be taken but one by rank 1", async () => {
      const taken = (await cluster.client.reload(id)).ranks.map((rank) => rank.push?.buckets_taken);
      return taken.join() === `${sent.length},${sent.length - 1}` || null;
    });
    const views = await Promise.all(sent.map(({ bucket }) => cluster.client.bucket(id, bucket, 0)));
    expect(views.filter(({ state }) => state === "pending").map((view) => view.waiting_for)).toEqual([["0/1"]]);
    held.release();
    for (const bucket of sent) expect((await push.consumed(bucket)).state).toBe("consumed");
    await expectGoldens(await push.finish());
  });

  it("are as right when one is held at each bucket in turn", async () => {
    const push = await TENSORS.open(cluster, BODY);
    for (const [index, what] of buckets().entries()) {
      const held = cluster.fault(`worker.bucket@0-${index % 2}`, "wait");
      const bucket = await push.send(what);
      await held.hit();
      held.release();
      if (index % 3 === 0) await push.consumed(bucket);
    }
    await expectGoldens(await push.finish());
  });
});

describe("a worker that is killed between buckets", () => {
  it.each([
    ["spool", "worker.bucket"],
    ["spool", "worker.bucket_taken"],
    ["trainer", "worker.bucket_taken"],
    ["trainer", "worker.finalize"],
  ])("with retain %s gets all again, killed at %s", async (retain, point) => {
    cluster.fault(`${point}@0-1`, "kill");
    const { code, out, err } = await cluster.cli(
      ...["push", "--source", join(CHECKPOINTS, MODEL, "v1"), "--recipe", SCHEME, "--allow-new-layout"],
      ...["--retain", retain, "--order", "random", "--seed", "9", "--bucket-bytes", "200000", "--json"],
    );
    expect([code, err]).toEqual([0, ""]);
    await expectGoldens(JSON.parse(out) as ReloadView);
  });
});

function putOrLater(id: string, bucket: number, body: Parameters<Cluster["client"]["putBucket"]>[2]) {
  return cluster.client.putBucket(id, bucket, body).catch((error: { code?: string }) => {
    if (error.code === "backpressure") return null;
    throw error;
  });
}
