// A push is finished when all that it needs has come; what is missing is named, and nothing closes.

import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { nextStep } from "../../../orchestrator/fleet/advance.js";
import { openFleetStore } from "../../../orchestrator/fleet/fleet-store.js";
import { cancel } from "../../../orchestrator/fleet/reload-transitions.js";
import { finishSession } from "../../../orchestrator/reloads/push/finish-push.js";
import { expectLayercastRejection } from "../../checkpoint/expect-error.js";
import { CONFIG, FLEET, NAMES, type Sent, type TestPush, usePushes } from "./open-push.js";

const world = usePushes("finish-push");

const layer0 = (name: string) => `model.layers.0.${name}.weight`;
const [Q, K, V] = ["q_proj", "k_proj", "v_proj"].map((name) => layer0(`self_attn.${name}`)) as [string, string, string];
const without = (...names: string[]) => NAMES.filter((name) => !names.includes(name));

async function sendAll(push: TestPush, ...what: Sent[]): Promise<void> {
  await push.send(...what);
  await push.spooled();
}

const finish = ({ deps, id }: TestPush) => finishSession(deps, id);

/** It is not finished, for this reason, and nothing has changed. */
async function lacks(push: TestPush, sentence: RegExp) {
  const before = [await push.everything(), await push.record()];
  const { details } = await expectLayercastRejection(finish(push), "tensor_missing", sentence);
  expect([await push.everything(), await push.record()]).toEqual(before);
  return { ...details };
}

/** A fleet that holds weights, parts of which may be changed. */
async function openPartial(source: Parameters<typeof world.open>[0] = {}): Promise<TestPush> {
  const committed = { reload: "a", content: "a", weightVersion: "a", epoch: 1, layoutDigest: "layout" };
  await openFleetStore(world.redis).transact(FLEET, (draft) => {
    Object.assign(draft, { committed, epoch: 1, decidedEpoch: 1 });
  });
  return await world.open({ partial: true, ...source });
}

describe("finishing", () => {
  it("needs every row of every tensor: those missing are named, whole or by how many rows, and the push goes on", async () => {
    const push = await world.open();
    await sendAll(push, ...without(Q, K), { name: Q, from: 4, to: 20 });
    const details = await lacks(
      push,
      /^2 tensors have not been sent, or not whole: (8 rows of \S+q_proj\.weight, \S+k_proj\.weight|\S+k_proj\.weight, 8 rows of \S+q_proj\.weight)\. Send them and finish again$/,
    );
    expect(details).toEqual({ tensors: expect.arrayContaining([Q, K]), count: 2 });
    await sendAll(push, K, { name: Q, from: 0, to: 4 });
    expect(await lacks(push, /^1 tensor .*: 4 rows of \S+q_proj\.weight\. Send/)).toEqual({ tensors: [Q], count: 1 });
    await sendAll(push, { name: Q, from: 20, to: 24 });
    await finish(push);
    expect((await push.record()).push?.finished).toBe(true);
  });

  it("names ten in its sentence and more in its details when nothing has come", async () => {
    const push = await world.open();
    const details = await lacks(push, new RegExp(`^${NAMES.length} tensors .* and ${NAMES.length - 10} more\\. Send`));
    expect(details).toEqual({ tensors: expect.arrayContaining(NAMES), count: NAMES.length });
  });

  it("lets ranks finalize, once, however often and wherever it is asked for", async () => {
    const push = await world.open();
    await sendAll(push, ...NAMES);
    expect(nextStep(await push.fleet())).toBeNull();
    const other = await push.elsewhere();
    await Promise.all([finish(push), finish(other), finish(push)]);
    await finish(other);
    expect(await push.deps.sessions.summary(push.id)).toMatchObject({ finished: true, accepted: 1 });
    expect(nextStep(await push.fleet())).toMatchObject({ kind: "enqueue", reload: push.id, ranks: ["0/0", "0/1"] });
    await push.deps.store.transact(FLEET, (draft, { now }) => cancel(draft, push.id, now));
    await finish(push); // what was finished stays so
  });

  it("does not wait for what is sent to be consumed", async () => {
    const push = await world.open({ retain: "trainer" });
    await push.send(...NAMES);
    await finish(push);
    expect([await push.state(0), (await push.record()).push?.finished]).toEqual(["pending", true]);
  });

  it("never leaves out a bucket that is accepted meanwhile: it came before, or it is refused", async () => {
    for (let round = 0; round < 5; round++) {
      await world.redis.flushall();
      const push = await world.open({ retain: "trainer", config: { ...CONFIG, tie_word_embeddings: true } });
      await push.send(...without("lm_head.weight"));
      const other = await push.elsewhere();
      const [finished, sent] = await Promise.allSettled([finish(push), other.send("lm_head.weight")]);
      expect(finished.status).toBe("fulfilled");
      const count = await push.deps.sessions.count(push.id);
      if (sent.status === "fulfilled") expect([sent.value, count]).toEqual([1, 2]);
      else expect([sent.reason.code, count]).toEqual(["session_closed", 1]);
    }
  });

  it("is not possible before the push is open, after it has ended, or of what is no push", async () => {
    const push = await world.submit();
    await expectLayercastRejection(finish(push), "backpressure", /takes no buckets yet: it is queued/);
    await push.restart(0);
    await push.restart(1);
    await world.start(push);
    await push.deps.store.transact(FLEET, (draft, { now }) => cancel(draft, push.id, now));
    await expectLayercastRejection(finish(push), "session_closed", /is cancelled and takes no buckets/);
    const checkpoint = join(world.sources, "checkpoint");
    mkdirSync(checkpoint);
    const pull = await world.submit({ kind: "safetensors", uri: checkpoint });
    await expectLayercastRejection(finish(pull), "invalid_request", /is not a push: its source names files/);
    await expectLayercastRejection(pull.send(Q), "invalid_request", /is not a push/);
  });
});

describe("finishing a push of parts", () => {
  it("needs every module of which something has come, whole, and no other", async () => {
    const push = await openPartial();
    await sendAll(push, layer0("mlp.down_proj"), Q, { name: K, from: 0, to: 2 });
    const details = await lacks(
      push,
      /^2 tensors .*: .*(4 rows of \S+k_proj\.weight.*v_proj|v_proj.*4 rows of \S+k_proj)/,
    );
    expect(details).toEqual({ tensors: expect.arrayContaining([K, V]), count: 2 });
    await sendAll(push, { name: K, from: 2, to: 6 }, V);
    await finish(push);
    expect((await push.record()).push).toMatchObject({ finished: true, partial: true });
  });

  it("needs something", async () => {
    const push = await openPartial();
    const details = await lacks(push, /^no module has been sent; send at least one, or cancel the push/);
    expect(details).toEqual({ tensors: [], count: 0 });
  });

  it("touches each module that a tensor is for: tied embeddings are the head too", async () => {
    const push = await openPartial({ config: { ...CONFIG, tie_word_embeddings: true } });
    await sendAll(push, "model.embed_tokens.weight");
    await finish(push);
    expect((await push.record()).push?.finished).toBe(true);
  });
});
