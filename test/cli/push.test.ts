import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { createClient } from "../../orchestrator/cli/http-client.js";
import { type BuiltTensor, buildSafetensors } from "../checkpoint/build-safetensors.js";
import { runCaptured } from "./captured.js";
import { type FakePush, startFakePush } from "./fake-push.js";

const CONFIG = { architectures: ["LlamaForCausalLM"], model_type: "llama" };
const bytesFrom = (first: number, count: number) => Uint8Array.from({ length: count }, (_, index) => first + index);
const TENSORS: Record<string, Required<BuiltTensor>> = {
  "a.weight": { dtype: "U8", shape: [6, 2], bytes: bytesFrom(10, 12) },
  "b.weight": { dtype: "BF16", shape: [3], bytes: bytesFrom(40, 6) },
  "b.scale": { dtype: "F32", shape: [], bytes: bytesFrom(60, 4) },
  "c.weight": { dtype: "U8", shape: [2, 2], bytes: bytesFrom(80, 4) },
};
const NAMES = Object.keys(TENSORS);

let scratch: string;
let source: string;
let push: FakePush;

beforeAll(() => {
  scratch = mkdtempSync(join(tmpdir(), "layercast-push-"));
  source = join(scratch, "checkpoint");
  mkdirSync(source);
  writeFileSync(join(source, "config.json"), JSON.stringify(CONFIG));
  const [a, b, scale, c] = NAMES as [string, string, string, string];
  const file = (...names: string[]) => buildSafetensors(Object.fromEntries(names.map((name) => [name, built(name)])));
  writeFileSync(join(source, "model-1.safetensors"), file(a, b));
  writeFileSync(join(source, "model-2.safetensors"), file(scale, c));
});
afterAll(() => rmSync(scratch, { recursive: true }));
beforeEach(async () => {
  push = await startFakePush();
});
afterEach(() => push.close());

function built(name: string): Required<BuiltTensor> {
  const tensor = TENSORS[name];
  if (tensor === undefined) throw new Error(`no tensor ${name}`);
  return tensor;
}

function layercast(options = "", more: string[] = []) {
  const args = ["push", "--source", source, ...options.split(" ").filter((word) => word !== ""), ...more];
  return runCaptured(args, { env: { LAYERCAST_URL: push.url } });
}

function expectReceived(names: readonly string[] = NAMES): void {
  const expected = names.map((name) => [name, Buffer.from(built(name).bytes)]);
  expect(push.received()).toEqual(new Map(expected as [string, Buffer][]));
}

const sent = () => push.asked.filter((one) => /^(PUT|POST) \/buckets/.test(one));

describe("push", () => {
  it("opens a push of the checkpoint's config and tensors, with only what was given", async () => {
    await layercast("--order checkpoint");
    const tensors = NAMES.map((name) => ({ name, dtype: built(name).dtype, shape: built(name).shape }));
    expect(push.submitted).toEqual({
      source: { kind: "push", config: CONFIG, tensors },
      recipe: {},
      install: {},
      policy: {},
    });
  });

  it("turns every option into its field", async () => {
    const session =
      "--retain trainer --retain-export --max-pending-buckets 3 --max-buffer-bytes 5 --warn-buffer-bytes 7";
    await layercast(`--order checkpoint ${session} --recipe fp8-block --weight-version w --partial *`);
    expect(push.submitted).toMatchObject({
      source: {
        retain: "trainer",
        retain_export: true,
        partial: true,
        max_pending_buckets: 3,
        max_buffer_bytes: 5,
        warn_buffer_bytes: 7,
      },
      recipe: { scheme: "fp8-block" },
      weight_version: "w",
    });
  });

  it.each([
    "--order checkpoint",
    "--order checkpoint --bucket-bytes 1",
    "--order random --seed 4 --rows 2",
    "--order random --seed 5 --rows 1 --bucket-bytes 8 --max-pending-buckets 1",
  ])("sends every byte once and exits with 0 when it is committed: %s", async (options) => {
    const { code, out, err } = await layercast(options);
    expect([code, err]).toEqual([0, ""]);
    expect(out).toContain("committed: reload reload-1");
    expectReceived();
    expect(push.asked.filter((one) => one === "POST /finish")).toHaveLength(1);
  });

  it("sends in the order of the modules what they need, and nothing else", async () => {
    push.expected = ["c.weight", "a.weight"];
    await layercast("--order module --bucket-bytes 1");
    expectReceived(["c.weight", "a.weight"]);
    expect(Buffer.from(push.buckets.get(0)?.bytes ?? []).toString("latin1")).toContain("c.weight");
  });

  it("sends of a partial push the tensors that its patterns name, and lists all", async () => {
    await layercast("--order checkpoint --partial b.* *c.weight");
    expectReceived(["b.weight", "b.scale", "c.weight"]);
    expect(push.submitted).toMatchObject({ source: { partial: true, tensors: { length: NAMES.length } } });
  });

  it("asks for the plan on a dry run and sends nothing", async () => {
    await layercast("--dry-run");
    expect(push.planned).toMatchObject({ source: { kind: "push" } });
    expect(sent()).toEqual([]);
  });

  it("has no more buckets pending than it may", async () => {
    push.consumesAtOnce = false;
    expect((await layercast("--order checkpoint --bucket-bytes 1 --max-pending-buckets 2")).code).toBe(0);
    expect(push.mostPending).toBe(2);
  });
});

describe("a bucket", () => {
  it("that there is no room for is sent again when the answer says to, and not before", async () => {
    push.refusals = [{ status: 429, code: "backpressure", retryAfterS: 1 }];
    const startedAt = performance.now();
    expect((await layercast("--order checkpoint")).code).toBe(0);
    expect(performance.now() - startedAt).toBeGreaterThanOrEqual(1_000);
    expect(sent()).toEqual(["PUT /buckets/0", "PUT /buckets/0"]);
    expectReceived();
  });

  it("whose answer was lost is not sent again when it has come", async () => {
    push.refusals = [null];
    expect((await layercast("--order checkpoint")).code).toBe(0);
    expect(sent()).toEqual(["PUT /buckets/0"]);
  });

  it("that is wanted again is sent again, once", async () => {
    push.consumesAtOnce = false;
    push.wantsOnce = 1;
    const { code } = await layercast("--order checkpoint --bucket-bytes 1 --max-pending-buckets 1 --retain trainer");
    expect(code).toBe(0);
    expect(sent().map((one) => Number(one.slice(-1)))).toEqual([0, 1, 1, 2, 3]);
    expectReceived();
  });

  it("that is refused cancels the push and says why", async () => {
    push.refusals = [{ status: 422, code: "shape_mismatch" }];
    const { code, err } = await layercast("--order checkpoint");
    expect([code, err]).toEqual([1, "layercast: shape_mismatch: refused: shape_mismatch"]);
    expect(push.asked).toContain("POST /cancel");
    expect(push.state).toBe("cancelled");
  });

  it("that is refused before it has been sent whole is closed, and the refusal is what is said", async () => {
    const hasty = createServer((_, response) => {
      const problem = JSON.stringify({ code: "tensor_unexpected", detail: "no", details: {} });
      response.writeHead(422, { "content-type": "application/json", connection: "close" }).end(problem);
    });
    await new Promise<void>((resolve) => hasty.listen(0, "127.0.0.1", resolve));
    let closed = false;
    const chunk = new Uint8Array(2 ** 20);
    const chunks = async function* () {
      try {
        for (let sent = 0; sent < 256; sent++) yield chunk;
      } finally {
        closed = true;
      }
    };
    const client = createClient(`http://127.0.0.1:${(hasty.address() as AddressInfo).port}`, null);
    const sending = client.putBucket("reload-1", 0, { sizeBytes: 256 * chunk.byteLength, chunks });
    await expect(sending).rejects.toMatchObject({ code: "tensor_unexpected" });
    await expect.poll(() => closed).toBe(true);
    await new Promise((resolve) => hasty.close(resolve));
  });

  it("that comes too late leaves the last word to the reload", async () => {
    push.refusals = [{ status: 409, code: "session_closed" }];
    push.error = { code: "deadline_exceeded", message: "too slow", retryable: false, details: {} };
    const running = layercast("--order checkpoint");
    push.state = "failed";
    const { code, out } = await running;
    expect(code).toBe(1);
    expect(out).toContain("failed: reload reload-1 (weight version 120, fleet default): deadline_exceeded: too slow");
    expect(push.asked).not.toContain("POST /cancel");
  });
});

describe("buckets as files", () => {
  const directory = () => join(scratch, "buckets");

  it("are named by URI, and removed when they are consumed", async () => {
    push.consumesAtOnce = false;
    const { code } = await layercast("--order checkpoint --bucket-bytes 1 --max-pending-buckets 1", [
      "--bucket-dir",
      directory(),
    ]);
    expect(code).toBe(0);
    expectReceived();
    const uris = [...push.buckets.values()].map(({ uri }) => uri);
    expect(uris[0]).toBe(pathToFileURL(join(directory(), "reload-1-0.safetensors")).href);
    expect(readdirSync(directory())).toEqual([]);
  });

  it("are the same file when they are sent again", async () => {
    push.refusals = [null, { status: 503, code: "redis_unavailable" }];
    expect((await layercast("--order checkpoint", ["--bucket-dir", directory()])).code).toBe(0);
    expect(push.buckets.size).toBe(1);
    expectReceived();
  });

  it("are removed when the push is refused", async () => {
    push.refusals = [{ status: 422, code: "dtype_mismatch" }];
    expect((await layercast("--order checkpoint", ["--bucket-dir", directory()])).code).toBe(1);
    expect(readdirSync(directory())).toEqual([]);
  });

  it("need a directory that can be written to", async () => {
    const { code, err } = await layercast("--order checkpoint", ["--bucket-dir", join(source, "config.json")]);
    expect(code).toBe(1);
    expect(err).toMatch(/^layercast: invalid_request: A bucket cannot be written to .*--bucket-dir/);
  });
});

describe("what goes wrong before anything is sent", () => {
  it("is a source that is no checkpoint", async () => {
    const { code, err } = await layercast("", ["--source", scratch]);
    expect([code, push.submitted]).toEqual([1, null]);
    expect(err).toContain("has no config.json");
  });

  it("is a pattern that names nothing", async () => {
    const { code, err } = await layercast("--partial model.*");
    expect([code, push.submitted]).toEqual([1, null]);
    expect(err).toContain("invalid_request: No tensor of the checkpoint is called model.*");
  });

  it.each([
    ["--order sideways", /Allowed choices are checkpoint, module, random/],
    ["--rows 0", /whole number from 1/],
    ["--bucket-bytes none", /whole number from 1/],
    ["--retain nobody", /Allowed choices are spool, trainer/],
  ])("is wrong usage, with 2: %s", async (options, words) => {
    const { code, err } = await layercast(options);
    expect(code).toBe(2);
    expect(err).toMatch(words);
    expect(push.asked).toEqual([]);
  });
});
