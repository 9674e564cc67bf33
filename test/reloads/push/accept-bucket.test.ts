// Buckets as files and as bodies: each finds its place once, and what does not belong changes nothing.

import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { Readable } from "node:stream";
import { pathToFileURL } from "node:url";
import { describe, expect, it } from "vitest";
import { parseModelConfig } from "../../../orchestrator/checkpoint/model-config.js";
import type { ErrorCode } from "../../../orchestrator/contract/errors.js";
import { cancel, fail } from "../../../orchestrator/fleet/reload-transitions.js";
import { declaredTable } from "../../../orchestrator/planner/declared-table.js";
import { acceptBody } from "../../../orchestrator/reloads/push/accept-bucket.js";
import { finishSession } from "../../../orchestrator/reloads/push/finish-push.js";
import { buildSafetensors } from "../../checkpoint/build-safetensors.js";
import { expectLayercastRejection } from "../../checkpoint/expect-error.js";
import { bucketBytes, CONFIG, FLEET, NAMES, SHAPES, type TestPush, usePushes } from "./open-push.js";

const world = usePushes("accept-bucket");

const DEEPSEEK = join(import.meta.dirname, "../../fixtures/checkpoints/tiny-deepseek-v3/v1");
const EMBED = "model.embed_tokens.weight";
const NORM = "model.norm.weight";
const Q = "model.layers.0.self_attn.q_proj.weight";
const K = "model.layers.0.self_attn.k_proj.weight";
const other = { fill: 1 };

/** Both ways to send the same bytes. */
const WAYS = ["a file", "a body"] as const;
type Way = (typeof WAYS)[number];

const send = (push: TestPush, way: Way, bytes: Uint8Array, number: number) =>
  way === "a file" ? push.post(push.write(bytes)) : push.put(number, bytes);

const spoolFiles = ({ id }: TestPush) => {
  const own = join(world.spoolDirectory, id);
  return existsSync(own) ? readdirSync(own) : [];
};

/** It is refused by name, and leaves everything as it was. */
async function refused(push: TestPush, sending: () => Promise<unknown>, code: ErrorCode, sentence: RegExp) {
  const before = [await push.everything(), spoolFiles(push)];
  const { details } = await expectLayercastRejection(sending(), code, sentence);
  expect([await push.everything(), spoolFiles(push)]).toEqual(before);
  return { ...details };
}

describe("a body whose connection breaks off", () => {
  it.each([
    ["in its header", 20],
    ["among its tensors", 600],
  ])("%s is request_aborted, the client's doing, and leaves nothing in the spool", async (_where, bytes) => {
    const push = await world.open();
    const whole = bucketBytes([EMBED]);
    const body = Readable.from(
      (async function* () {
        yield Buffer.from(whole.subarray(0, bytes));
        throw Object.assign(new Error("aborted"), { code: "ECONNRESET" });
      })(),
    );
    const sending = () => acceptBody(push.deps, push.id, 0, body, whole.byteLength);
    await refused(push, sending, "request_aborted", /the connection ended before all \d+ bytes of .* had come/);
  });
});

describe.each(WAYS)("%s", (way) => {
  it("is accepted with what it holds, and its jobs go to every rank", async () => {
    const push = await world.open();
    expect(await send(push, way, bucketBytes([NORM, { name: Q, from: 3, to: 9 }]), 0)).toBe(0);
    await push.spooled();
    const bucket = await push.deps.sessions.bucket(push.id, 0);
    expect(bucket).toMatchObject({
      number: 0,
      tensors: 2,
      bytes: 48 + 6 * 48,
      state: "pending",
      spooled: true,
    });
    expect(bucket.pieces.map(({ firstRow, rows }) => [firstRow, rows]).sort()).toEqual([
      [0, 24],
      [3, 6],
    ]);
    const incarnations = Object.values((await push.fleet()).ranks).map(({ incarnation }) => incarnation);
    expect([...push.jobs].sort()).toEqual(incarnations.map((incarnation) => `${incarnation} 0-0`).sort());
  });

  it("is refused by name for a tensor, a dtype, a shape, rows: nothing is changed by it", async () => {
    const push = await world.open();
    await send(push, way, bucketBytes([NORM]), 0);
    await push.spooled();
    const sent = (bytes: Uint8Array) => () => send(push, way, bytes, 1);
    const extra = buildSafetensors({ extra: { dtype: "BF16", shape: [1] } });
    expect(await refused(push, sent(extra), "tensor_unexpected", /"extra" is not one/)).toEqual({ tensors: ["extra"] });
    const wide = bucketBytes([K], { dtype: "F32" });
    expect(await refused(push, sent(wide), "dtype_mismatch", /k_proj\.weight is F32/)).toMatchObject({ tensor: K });
    const short = bucketBytes([K], { shapes: { [K]: [5, 24] } });
    expect(await refused(push, sent(short), "shape_mismatch", /k_proj\.weight has shape/)).toMatchObject({ tensor: K });
    const beyond = bucketBytes([{ name: K, from: 4, to: 7 }]);
    expect(await refused(push, sent(beyond), "checkpoint_invalid", /ends at row 7 of 6/)).toMatchObject({ tensor: K });
    const cut = bucketBytes([K]).subarray(0, -3);
    await refused(push, sent(cut), "checkpoint_invalid", /./);
    expect(await push.deps.sessions.count(push.id)).toBe(1);
  });

  it("with the names of a wrapped model is taken for the model's tensors, and the record says so once", async () => {
    const push = await world.open();
    const wrapped = (name: string, ...shape: number[]) =>
      buildSafetensors({ [`module.${name}`]: { dtype: "BF16", shape } });
    expect(await send(push, way, wrapped(NORM, 24), 0)).toBe(0);
    expect(await send(push, way, wrapped(K, 6, 24), 1)).toBe(1);
    await push.spooled();
    const { warnings } = await push.record();
    expect(warnings).toMatchObject([{ code: "names_unwrapped", message: expect.stringContaining('"module."') }]);
    expect((await push.events("warning")).length).toBe(1);
    const twice = () => send(push, way, bucketBytes([NORM], other), 2);
    await refused(push, twice, "tensor_duplicate", /norm\.weight was sent before/);
  });

  it("may bring another float dtype where the request's dtype rounds it, all rows of a tensor in one", async () => {
    const push = await world.open({}, { dtype: "bfloat16" });
    const wide = { dtype: "F32" as const };
    expect(await send(push, way, bucketBytes([NORM, { name: Q, from: 0, to: 8 }], wide), 0)).toBe(0);
    await push.spooled();
    const { pieces } = await push.deps.sessions.bucket(push.id, 0);
    expect(pieces.map(({ dtype }) => dtype)).toEqual(["F32", "F32"]);
    const rest = { name: Q, from: 8, to: 24 };
    const sentence =
      /q_proj\.weight is BF16; bucket 0 brought other rows of it as F32\. Send all rows of a tensor in one/;
    const details = await refused(push, () => send(push, way, bucketBytes([rest]), 1), "dtype_mismatch", sentence);
    expect(details).toEqual({ tensor: Q, expected: "F32", found: "BF16", bucket: 0 });
    expect(await send(push, way, bucketBytes([rest], wide), 1)).toBe(1);
    expect(await send(push, way, bucketBytes([K]), 2)).toBe(2);
    await push.spooled();
  });

  it("may bring the correction bias of a router, which goes to F32, in any float dtype", async () => {
    const config = JSON.parse(readFileSync(join(DEEPSEEK, "config.json"), "utf8")) as Record<string, unknown>;
    const push = await world.open({ config });
    const bias = { "model.layers.1.mlp.gate.e_score_correction_bias": { dtype: "BF16" as const, shape: [8] } };
    expect(await send(push, way, buildSafetensors(bias), 0)).toBe(0);
    await push.spooled();
    expect((await push.deps.sessions.bucket(push.id, 0)).pieces).toMatchObject([{ dtype: "BF16" }]);
    const norm = { [NORM]: { dtype: "F32" as const, shape: [128] } };
    await refused(push, () => send(push, way, buildSafetensors(norm), 1), "dtype_mismatch", /norm\.weight is F32/);
  });

  it("is held to the dtypes of a list, whatever the request's dtype", async () => {
    const tensors = NAMES.map((name) => ({ name, dtype: "BF16" as const, shape: SHAPES[name] ?? [] }));
    const push = await world.open({ tensors }, { dtype: "bfloat16" });
    const wide = bucketBytes([K], { dtype: "F32" });
    await refused(
      push,
      () => send(push, way, wide, 0),
      "dtype_mismatch",
      /k_proj\.weight is F32; .* planned with BF16/,
    );
  });

  it("that brings rows a second time is refused with the tensor and the bucket that had them", async () => {
    const push = await world.open();
    await send(push, way, bucketBytes([NORM, { name: Q, from: 0, to: 8 }]), 0);
    await send(push, way, bucketBytes([K]), 1);
    await push.spooled();
    const overlapping = bucketBytes([{ name: Q, from: 7, to: 9 }, EMBED]);
    const sentence = /q_proj\.weight was sent before, with bucket 0, .*rows are sent once; to change .* open another/;
    const details = await refused(push, () => send(push, way, overlapping, 2), "tensor_duplicate", sentence);
    expect(details).toEqual({ tensor: Q, bucket: 0 });
    expect(await send(push, way, bucketBytes([{ name: Q, from: 8, to: 9 }, EMBED]), 2)).toBe(2);
    await push.spooled();
  });

  it("again is the same bucket, its jobs sent once; with other bytes it is refused", async () => {
    const push = await world.open();
    const bytes = bucketBytes([NORM, K]);
    expect(await send(push, way, bytes, 0)).toBe(0);
    await push.spooled();
    const [jobs, files] = [[...push.jobs], spoolFiles(push)];
    for (const _ of [1, 2]) expect(await send(push, way, bytes, 0)).toBe(0);
    await push.spooled();
    expect([push.jobs, spoolFiles(push), await push.deps.sessions.count(push.id)]).toEqual([jobs, files, 1]);
    const changed = () => send(push, way, bucketBytes([NORM, K], other), 0);
    expect(await refused(push, changed, "tensor_duplicate", /not with the same bytes/)).toEqual({
      tensor: NORM,
      bucket: 0,
    });
  });

  it("may hold what nothing needs, beside what is needed or alone", async () => {
    const push = await world.open({ config: { ...CONFIG_TIED } });
    const rotary = { "model.layers.0.self_attn.rotary_emb.inv_freq": { dtype: "F32" as const, shape: [2] } };
    const head = { "lm_head.weight": { dtype: "BF16" as const, shape: [100, 24] } };
    const norm = { [NORM]: { dtype: "BF16" as const, shape: [24] } };
    expect(await send(push, way, buildSafetensors({ ...rotary, ...norm }), 0)).toBe(0);
    expect(await send(push, way, buildSafetensors(head), 1)).toBe(1);
    await push.spooled();
    expect((await push.deps.sessions.bucket(push.id, 1)).pieces).toEqual([]);
    expect((await push.deps.sessions.rows(push.id)).size).toBe(1);
    await push.takeByAll(1);
    expect(await push.state(1)).toBe("consumed");
  });

  it("waits when as many as may be are not consumed: 429, and nothing is taken", async () => {
    const push = await world.open({ max_pending_buckets: 2 });
    for (const [number, name] of [NORM, K].entries()) await send(push, way, bucketBytes([name]), number);
    await push.spooled();
    const third = () => send(push, way, bucketBytes([EMBED]), 2);
    const sentence = /^2 buckets of reload \w+ are not consumed yet; .*larger max_pending_buckets/;
    expect(await refused(push, third, "backpressure", sentence)).toEqual({ max_pending_buckets: 2 });
    expect(await send(push, way, bucketBytes([NORM]), 0)).toBe(0); // the same is not one more
    await push.takeByAll(0);
    expect(await third()).toBe(2);
    await push.spooled();
  });

  it("that is wanted is taken whatever waits, as its next delivery, and sent to who needs it", async () => {
    const push = await world.open({ retain: "trainer", max_pending_buckets: 2 });
    await send(push, way, bucketBytes([NORM]), 0);
    await push.takeByAll(0);
    await push.restart(1);
    await push.tend();
    expect(await push.state(0)).toBe("wanted");
    await send(push, way, bucketBytes([K]), 1);
    await refused(push, () => send(push, way, bucketBytes([EMBED]), 2), "backpressure", /^2 buckets/);
    push.jobs.length = 0;
    expect(await send(push, way, bucketBytes([NORM]), 0)).toBe(0);
    expect(push.jobs).toContain(`${(await push.fleet()).ranks["0/1"]?.incarnation} 0-1`);
    expect(await push.deps.sessions.bucket(push.id, 0)).toMatchObject({ state: "pending", delivery: 1 });
  });

  it.each(["queued", "planning"])("is told to wait while its push is %s, with what that waits for", async (state) => {
    const push = await world.submit();
    if (state === "planning") for (const rank of [0, 1]) await push.restart(rank);
    expect((await push.record()).state).toBe(state);
    const sentence =
      state === "queued" ? /it is queued \(fleet_incomplete: .*; send the bucket again/ : /it is planning \(/;
    const sending = () => send(push, way, bucketBytes([NORM]), 0);
    expect(await refused(push, sending, "backpressure", sentence)).toEqual({ state });
  });

  it("is too late when its push is finished, or has ended; but what was sent is known", async () => {
    const push = await world.open();
    await send(push, way, bucketBytes(NAMES.filter((name) => name !== NORM)), 0);
    await send(push, way, bucketBytes([NORM]), 1);
    await push.spooled();
    await finishSession(push.deps, push.id);
    const rest = { "model.layers.0.self_attn.rotary_emb.inv_freq": { dtype: "F32" as const, shape: [2] } };
    const late = () => send(push, way, buildSafetensors(rest), 2);
    await refused(push, late, "session_closed", /is finished and takes no buckets; open another push/);
    expect(await send(push, way, bucketBytes([NORM]), 1)).toBe(1);
    await push.deps.store.transact(FLEET, (draft, { now }) => cancel(draft, push.id, now));
    const details = await refused(push, late, "session_closed", /is cancelled and takes no buckets/);
    expect(details).toEqual({ state: "cancelled" });
  });

  it("is refused with the reason when its push has failed", async () => {
    const push = await world.open();
    const error = { code: "layout_changed", message: "another layout", retryable: false, details: {} } as const;
    const { epoch } = await push.record();
    await push.deps.store.transact(FLEET, (draft, { now }) => fail(draft, push.id, epoch ?? 0, error, now));
    const sending = () => send(push, way, bucketBytes([NORM]), 0);
    const details = await refused(push, sending, "session_closed", /is failed \(layout_changed: another layout\)/);
    expect(details).toEqual({ state: "failed", error });
  });
});

const CONFIG_TIED = {
  ...{
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    hidden_size: 24,
    intermediate_size: 48,
    vocab_size: 100,
  },
  ...{ num_attention_heads: 8, num_key_value_heads: 2, head_dim: 3, num_hidden_layers: 2 },
  ...{ torch_dtype: "bfloat16", tie_word_embeddings: true },
};

describe("a file", () => {
  it("may be named by URI or path, under an allowed root only, symbolic links resolved", async () => {
    const push = await world.open();
    const path = push.write(bucketBytes([NORM]));
    expect(await push.post(pathToFileURL(path).href)).toBe(0);
    const link = join(world.sources, "link.safetensors");
    symlinkSync(path, link);
    expect(await push.post(link)).toBe(0);
    await push.spooled();
    const outside = join(dirname(world.sources), "outside");
    mkdirSync(outside);
    const elsewhere = join(outside, "b.safetensors");
    writeFileSync(elsewhere, bucketBytes([K]));
    await refused(push, () => push.post(elsewhere), "source_not_allowed", /outside|allowed|root/);
    await refused(
      push,
      () => push.post(join(world.sources, "gone")),
      "source_not_found",
      /cannot be read on host \S+ \(ENOENT\)/,
    );
    await refused(push, () => push.post("relative"), "invalid_request", /absolute path/);
    await push.spooled();
  });

  it("with the same bytes in another one is the same bucket, also when the first is in the spool and gone", async () => {
    const push = await world.open();
    const first = push.write(bucketBytes([NORM, K]));
    await push.post(first);
    expect(await push.post(push.write(bucketBytes([K, NORM])))).toBe(0);
    await push.spooled();
    rmSync(first);
    expect(await push.post(push.write(bucketBytes([NORM, K], { note: "another header" })))).toBe(0);
    await refused(push, () => push.post(push.write(bucketBytes([NORM, K], other))), "tensor_duplicate", /bucket 0/);
  });

  it("is no longer known to be equal when nobody has what was sent: then it is refused, but the same file is the same", async () => {
    const push = await world.open({ retain: "trainer" });
    const path = push.write(bucketBytes([NORM]));
    await push.post(path);
    await push.takeByAll(0);
    expect(await push.post(path)).toBe(0);
    await refused(push, () => push.post(push.write(bucketBytes([NORM]))), "tensor_duplicate", /bucket 0/);
  });

  it("is not sent to a reload that is no push", async () => {
    const push = await world.open();
    await expectLayercastRejection(
      acceptBody(push.deps, "unknown", 0, Readable.from([]), 1),
      "not_found",
      /there is no reload unknown/,
    );
  });
});

describe("a body", () => {
  it("keeps the number that it was given, and its bytes in the spool", async () => {
    const push = await world.open();
    expect(await push.put(9, bucketBytes([NORM]))).toBe(0);
    const bucket = await push.deps.sessions.byNumber(push.id, 9);
    expect(bucket).toMatchObject({ sequence: 0, spooled: true });
    expect(spoolFiles(push)).toEqual([bucket?.file.path.split("/").at(-1)]);
    expect(await push.post(push.write(bucketBytes([K])))).toBe(1);
    expect(await push.deps.sessions.byNumber(push.id, 10)).toMatchObject({ sequence: 1 });
    await push.spooled();
  });

  it("under the number of another bucket is refused, and so is a bucket under another number", async () => {
    const push = await world.open();
    await push.put(4, bucketBytes([NORM]));
    const taken = await refused(
      push,
      () => push.put(4, bucketBytes([K])),
      "tensor_duplicate",
      /^bucket 4 of reload .* was sent before/,
    );
    expect(taken).toEqual({ tensor: K, bucket: 4 });
    const moved = await refused(push, () => push.put(5, bucketBytes([NORM])), "tensor_duplicate", /with bucket 4/);
    expect(moved).toEqual({ tensor: NORM, bucket: 4 });
  });

  it.each([
    ["before its header's length", 5],
    ["in its header", 60],
    ["in its tensors", -3],
  ])("that ends %s is refused with both lengths, and nothing of it is left", async (_where, end) => {
    const push = await world.open();
    const bytes = bucketBytes([NORM, K]);
    const part = bytes.subarray(0, end > 0 ? end : bytes.byteLength + end);
    const sending = () => push.put(0, part, bytes.byteLength);
    const details = await refused(push, sending, "checkpoint_invalid", /Content-Length says \d+; send it again/);
    expect(details).toEqual({ expected: bytes.byteLength, found: part.byteLength });
    expect(await push.put(0, bytes)).toBe(0);
  });

  it("is refused by its header alone, before the rest has come", async () => {
    const push = await world.open();
    const bytes = bucketBytes([K], { shapes: { [K]: [5, 24] } });
    async function* endless() {
      yield Buffer.from(bytes.subarray(0, -10));
      throw new Error("nobody should read on");
    }
    const sending = () => acceptBody(push.deps, push.id, 0, Readable.from(endless()), bytes.byteLength);
    await refused(push, sending, "shape_mismatch", /k_proj/);
    expect(spoolFiles(push)).toEqual([]);
  });
});

describe("two orchestrators at once", () => {
  it("accept different buckets each in its place, and the same one once", async () => {
    const one = await world.open({ max_pending_buckets: 1_000 });
    const two = await one.elsewhere();
    const both = (at: number) => (at % 2 === 0 ? one : two);
    const different = NAMES.map((name, at) => both(at).send(name));
    const sequences = await Promise.all(different);
    expect([...sequences].sort((a, b) => a - b)).toEqual([...NAMES.keys()]);
    const paths = NAMES.map((name) => one.write(bucketBytes([name])));
    const again = await Promise.all(paths.flatMap((path) => [one.post(path), two.post(path)]));
    expect(again).toEqual(sequences.flatMap((sequence) => [sequence, sequence]));
    expect(await one.deps.sessions.count(one.id)).toBe(NAMES.length);
    expect((await one.deps.sessions.rows(one.id)).size).toBe(NAMES.length);
    await Promise.all([one.spooled(), two.spooled()]);
    expect(await one.deps.sessions.summary(one.id)).toMatchObject({ unspooled: [] });
  });

  it.each(WAYS)("accept one bucket once when both are sent it as %s for the first time", async (way) => {
    const one = await world.open({ max_pending_buckets: 1_000 });
    const two = await one.elsewhere();
    for (const [number, name] of NAMES.slice(0, 6).entries()) {
      const bytes = bucketBytes([name]);
      const sent = await Promise.all([one, two, one, two].map((push) => send(push, way, bytes, number)));
      expect(new Set(sent)).toEqual(new Set([number]));
    }
    expect(await one.deps.sessions.count(one.id)).toBe(6);
    await Promise.all([one.spooled(), two.spooled()]);
    if (way === "a body") expect(spoolFiles(one)).toHaveLength(6);
  });

  it("accept one of two that bring the same rows, and refuse the other by name", async () => {
    const one = await world.open({ max_pending_buckets: 1_000 });
    const two = await one.elsewhere();
    for (const name of NAMES.slice(0, 6)) {
      const sending = [one.send(name), two.post(two.write(bucketBytes([name], other)))];
      const settled = await Promise.allSettled(sending);
      expect(settled.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
      const refusal = settled.find((one): one is PromiseRejectedResult => one.status === "rejected");
      expect(refusal?.reason).toMatchObject({ code: "tensor_duplicate", details: { tensor: name } });
    }
    await Promise.all([one.spooled(), two.spooled()]);
  });
});

it("a list with the names of a wrapped model opens a push of the model's tensors, and the record says so", async () => {
  const tensors = declaredTable(parseModelConfig(JSON.stringify(CONFIG), "source.config"), null).tensors;
  const wrapped = [...tensors.values()].map(({ name, dtype, shape }) => ({ name: `_orig_mod.${name}`, dtype, shape }));
  const push = await world.open({ tensors: wrapped });
  expect((await push.record()).warnings).toMatchObject([{ code: "names_unwrapped" }]);
  expect(await push.send(NORM)).toBe(0);
  expect(await push.post(push.write(buildSafetensors({ [`_orig_mod.${K}`]: { dtype: "BF16", shape: [6, 24] } })))).toBe(
    1,
  );
  expect((await push.record()).warnings).toHaveLength(1);
  await push.spooled();
});
