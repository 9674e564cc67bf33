// What a trainer is told of its push: of each bucket what it waits for, of the whole what is still to be sent.

import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { KEYS } from "../../../orchestrator/contract/jobs.js";
import { cancel } from "../../../orchestrator/fleet/reload-transitions.js";
import { pushAnswers, viewPush } from "../../../orchestrator/reloads/push/push-answers.js";
import { expectLayercastRejection } from "../../checkpoint/expect-error.js";
import { bucketBytes, FLEET, NAMES, SHAPES, type TestPush, usePushes } from "./open-push.js";

const world = usePushes("push-answers");

const [FIRST = "", SECOND = ""] = NAMES;
/** Longer than any test. */
const LONG_MS = 60_000;

let leaving: AbortController;
beforeEach(() => {
  leaving = new AbortController();
});
afterEach(() => leaving.abort());

const answersOf = ({ deps }: TestPush) => pushAnswers(deps);
const waitFor = (push: TestPush, bucket: number, waitMs = LONG_MS) =>
  answersOf(push).bucket(push.id, bucket, waitMs, leaving.signal);

describe("a bucket's view", () => {
  it("says what it holds, and which ranks have not taken it yet", async () => {
    const push = await world.open({ retain: "trainer" });
    const uri = push.write(bucketBytes([FIRST, SECOND]));
    const bytes = [FIRST, SECOND].reduce((sum, name) => sum + 2 * (SHAPES[name] ?? []).reduce((a, b) => a * b, 1), 0);
    const view = { reload_id: push.id, bucket: 0, state: "pending", bytes, tensors: 2, waiting_for: ["0/0", "0/1"] };
    expect(await answersOf(push).postBucket(push.id, { uri, immutable: false })).toEqual(view);
    await push.take(0, 0);
    expect(await waitFor(push, 0, 0)).toEqual({ ...view, waiting_for: ["0/1"] });
    await push.take(0, 1);
    expect(await waitFor(push, 0, 0)).toEqual({ ...view, state: "consumed", waiting_for: [] });
    await push.restart(1);
    await push.tend();
    expect(await waitFor(push, 0, 0)).toEqual({ ...view, state: "wanted", waiting_for: ["0/1"] });
  });

  it("goes by the trainer's number", async () => {
    const push = await world.open();
    await push.put(12, bucketBytes([FIRST]));
    expect(await waitFor(push, 12, 0)).toMatchObject({ bucket: 12 });
    await expectLayercastRejection(waitFor(push, 0), "not_found", /has no bucket 0/);
    await expectLayercastRejection(answersOf(push).bucket("r", 0, 0, leaving.signal), "not_found", /no reload r/);
  });
});

describe("waiting for a bucket", () => {
  /** What the wait answers once `change` has been made, well before its time is over. */
  async function afterwards(push: TestPush, change: () => Promise<unknown>) {
    const waiting = waitFor(push, 0);
    let isOver = false;
    void waiting.finally(() => {
      isOver = true;
    });
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(isOver).toBe(false);
    await change();
    return await waiting;
  }

  it("ends when it is consumed, at another orchestrator too", async () => {
    const push = await world.open({ retain: "trainer" });
    await push.send(FIRST);
    await push.take(0, 0);
    const other = await push.elsewhere();
    expect(await afterwards(other, () => push.take(0, 1))).toMatchObject({ state: "consumed", waiting_for: [] });
    expect(await waitFor(push, 0)).toMatchObject({ state: "consumed" }); // at once
  });

  it("ends when its push has ended, and then waits for nobody", async () => {
    const push = await world.open({ retain: "trainer" });
    await push.send(FIRST);
    const ending = () => push.deps.store.transact(FLEET, (draft, { now }) => cancel(draft, push.id, now));
    expect(await afterwards(push, ending)).toMatchObject({ state: "pending", waiting_for: [] });
  });

  it("ends with its time, or when the client goes", async () => {
    const push = await world.open({ retain: "trainer" });
    await push.send(FIRST);
    expect(await waitFor(push, 0, 30)).toMatchObject({ state: "pending" });
    expect(await afterwards(push, async () => leaving.abort())).toMatchObject({ state: "pending" });
  });

  it("is a sign of life, and looking is none", async () => {
    const push = await world.open({ retain: "trainer" });
    await push.send(FIRST);
    const touched = () => world.redis.hget(KEYS.session(push.id), "touched");
    await world.redis.hset(KEYS.session(push.id), "touched", "1");
    await waitFor(push, 0, 0);
    expect(await touched()).toBe("1");
    await waitFor(push, 0, 1);
    expect(Number(await touched())).toBeGreaterThan(1_000);
  });
});

describe("the tensors of a push", () => {
  it("are listed module by module, with what each is for and how many rows of it have come", async () => {
    const push = await world.open();
    const q = "model.layers.0.self_attn.q_proj.weight";
    await push.send({ name: q, from: 2, to: 5 }, FIRST);
    await push.send({ name: q, from: 20, to: 24 });
    await push.spooled();
    const { tensors } = await answersOf(push).expectedTensors(push.id);
    expect(new Map(tensors.map(({ name, shape }) => [name, shape]))).toEqual(new Map(Object.entries(SHAPES)));
    const rows = new Map(tensors.map(({ name, rows_received }) => [name, rows_received]));
    expect([rows.get(q), rows.get(FIRST), rows.get(SECOND)]).toEqual([7, SHAPES[FIRST]?.[0], 0]);
    const at = tensors.findIndex(({ name }) => name === q);
    expect(tensors[at]).toMatchObject({ dtype: "BF16", modules: ["model.layers.0.self_attn.qkv_proj"] });
    expect(tensors.slice(at, at + 3).map(({ modules }) => modules)).toEqual(Array(3).fill(tensors[at]?.modules));
  });

  it("are not known before it is planned", async () => {
    const push = await world.submit();
    const listing = answersOf(push).expectedTensors(push.id);
    await expectLayercastRejection(listing, "backpressure", /is queued and not planned yet; ask again/);
  });
});

describe("a reload's view of its push", () => {
  it("counts its buckets, and is null of a reload that is none", async () => {
    const push = await world.open({ retain: "trainer" });
    for (const name of [FIRST, SECOND]) await push.send(name);
    await push.takeByAll(0);
    await push.takeByAll(1);
    await push.restart(0);
    await push.tend();
    await push.send(FIRST);
    const { sessions, records } = push.deps;
    const stored = await records.read(push.id);
    const buckets = { accepted: 2, consumed: 0, wanted: [1] };
    expect(await viewPush(sessions, stored)).toEqual({ retain: "trainer", partial: false, finished: false, buckets });
    expect(await viewPush(sessions, { ...stored, record: { ...stored.record, push: null } })).toBeNull();
  });
});
