// The routes of push sessions: what they hand on, what they answer, what they refuse before anything is asked.

import { request } from "node:http";
import type { AddressInfo } from "node:net";
import type { Readable } from "node:stream";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { LayercastError } from "../../orchestrator/contract/errors.js";
import { bucketView, pushView, reloadView, signalled, type TestServer, testServer } from "./fake-reloads.js";

const BUCKETS = "/v1/reloads/rl-1/buckets";
const BYTES = { "content-type": "application/octet-stream" };

let server: TestServer;
beforeAll(async () => {
  server = await testServer();
});
afterAll(() => server.app.close());

const post = (url: string, payload?: object) =>
  server.app.inject({ method: "POST", url, ...(payload ? { payload } : {}) });
const put = (url: string, payload: Buffer | string, headers: Record<string, string> = BYTES) =>
  server.app.inject({ method: "PUT", url, payload, headers });
const get = (url: string) => server.app.inject({ method: "GET", url });

async function readAll(body: Readable): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of body) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

/** A request that the server refuses before anything of a push is asked. */
async function refusedEarly(sending: () => ReturnType<typeof get>, status: number, detail: RegExp): Promise<void> {
  const never = () => Promise.reject(new Error("asked"));
  server.behave({ postBucket: never, putBucket: never, bucket: never, finish: never });
  const answer = await sending();
  expect(answer.headers["content-type"]).toMatch(/^application\/problem\+json/);
  expect(answer.json()).toMatchObject({ status, code: "invalid_request", detail: expect.stringMatching(detail) });
}

describe("posting a bucket", () => {
  it("hands on the file, by default one that may change, and answers 202 with the bucket and its Location", async () => {
    const seen: unknown[] = [];
    server.behave({
      postBucket: async (...args) => {
        seen.push(args);
        return bucketView({ bucket: 7 });
      },
    });
    const answer = await post(BUCKETS, { uri: "file:///dev/shm/b" });
    expect([answer.statusCode, answer.json()]).toEqual([202, bucketView({ bucket: 7 })]);
    expect(answer.headers.location).toBe(`${BUCKETS}/7`);
    await post(BUCKETS, { uri: "/b", immutable: true });
    expect(seen).toEqual([
      ["rl-1", { uri: "file:///dev/shm/b", immutable: false }],
      ["rl-1", { uri: "/b", immutable: true }],
    ]);
  });

  it.each([
    [{}, /uri is missing/],
    [{ uri: "" }, /uri/],
    [{ uri: "/b", number: 3 }, /number is not a known field; known here: /],
    [{ uri: "/b", immutable: "yes" }, /immutable is "yes", but must be boolean/],
  ])("refuses %j", async (body, detail) => {
    await refusedEarly(() => post(BUCKETS, body), 400, detail);
  });

  it("says when to come back when there is no room", async () => {
    server.behave({
      postBucket: () => Promise.reject(new LayercastError("backpressure", "8 buckets are not consumed yet", {})),
    });
    const answer = await post(BUCKETS, { uri: "/b" });
    expect([answer.statusCode, answer.headers["retry-after"]]).toEqual([429, "1"]);
  });
});

describe("putting a bucket", () => {
  it("hands on the body as it comes, its number and its length", async () => {
    const seen: unknown[] = [];
    server.behave({
      putBucket: async (id, bucket, body, sizeBytes) => {
        seen.push([id, bucket, (await readAll(body)).toString(), sizeBytes]);
        return bucketView({ bucket });
      },
    });
    const answer = await put(`${BUCKETS}/3`, "the bytes");
    expect([answer.statusCode, answer.json()]).toEqual([202, bucketView({ bucket: 3 })]);
    expect(answer.headers.location).toBe(`${BUCKETS}/3`);
    expect(seen).toEqual([["rl-1", 3, "the bytes", 9]]);
  });

  it("takes a body that is longer than any other request's may be", async () => {
    server.behave({
      putBucket: async (_, bucket, body) => bucketView({ bucket, bytes: (await readAll(body)).byteLength }),
    });
    const bytes = 80 * 2 ** 20;
    expect((await put(`${BUCKETS}/0`, Buffer.alloc(bytes))).json()).toMatchObject({ bytes });
  });

  it("answers a refusal that comes before the body has", async () => {
    server.behave({
      putBucket: async (_id, _bucket, body) => {
        await body[Symbol.asyncIterator]().next();
        throw new LayercastError("tensor_unexpected", "extra is not one of the tensors", {});
      },
    });
    await server.app.listen({ port: 0, host: "127.0.0.1" });
    const { port } = server.app.server.address() as AddressInfo;
    const status = await new Promise<number | undefined>((resolve, reject) => {
      const headers = { ...BYTES, "content-length": "1000000" };
      const sending = request({ port, host: "127.0.0.1", method: "PUT", path: `${BUCKETS}/0`, headers }, (answer) => {
        resolve(answer.statusCode);
        sending.destroy();
      });
      sending.on("error", reject);
      sending.write("the first bytes");
    });
    expect(status).toBe(422);
  });

  it.each([
    ["of another type", { "content-type": "application/json" }, 400],
    ["of a type that nobody takes", { "content-type": "text/plain" }, 415],
  ])("refuses a body %s", async (_how, headers, status) => {
    await refusedEarly(() => put(`${BUCKETS}/0`, "{}", headers), status, /./);
  });

  it.each(["-1", "x", "1.5", "4294967296"])("refuses the number %s", async (number) => {
    await refusedEarly(() => put(`${BUCKETS}/${number}`, "bytes"), 400, /bucket/);
  });

  it("is the only route that takes bytes", async () => {
    const answer = await server.app.inject({ method: "POST", url: BUCKETS, payload: "bytes", headers: BYTES });
    expect(answer.json()).toMatchObject({ status: 415, code: "invalid_request" });
  });
});

describe("reading a bucket", () => {
  it("hands on how long to wait", async () => {
    const seen: unknown[] = [];
    server.behave({
      bucket: async (id, bucket, waitMs) => {
        seen.push([id, bucket, waitMs]);
        return bucketView({ bucket, state: "consumed", waiting_for: [] });
      },
    });
    expect((await get(`${BUCKETS}/4`)).json()).toMatchObject({ bucket: 4, state: "consumed" });
    expect((await get(`${BUCKETS}/4?wait=30s`)).statusCode).toBe(200);
    expect(seen).toEqual([
      ["rl-1", 4, 0],
      ["rl-1", 4, 30_000],
    ]);
  });

  it.each(["2m", "soon", "-1s"])("refuses to wait %s", async (wait) => {
    await refusedEarly(() => get(`${BUCKETS}/4?wait=${wait}`), 400, /wait/);
  });

  it("answers with the bucket as it is when the server closes", async () => {
    const waiting = signalled();
    const closing = await testServer({
      bucket: async (_id, bucket, waitMs) => {
        if (waitMs === 0) return bucketView({ bucket });
        waiting.resolve();
        return await new Promise(() => {});
      },
    });
    const answer = closing.app.inject(`${BUCKETS}/4?wait=60s`);
    await waiting.promise;
    await closing.app.close();
    expect((await answer).json()).toEqual(bucketView({ bucket: 4 }));
  });
});

describe("a push", () => {
  it("lists the tensors that it is to be sent", async () => {
    const tensors = [{ name: "w", dtype: "BF16" as const, shape: [2, 3], modules: ["m"], rows_received: 1 }];
    server.behave({ expectedTensors: async () => ({ tensors }) });
    expect((await get("/v1/reloads/rl-1/tensors")).json()).toEqual({ tensors });
  });

  it("is finished without a body, and answered 202 with the reload and its Location", async () => {
    const finished: string[] = [];
    const view = reloadView({ source: "push", push: { ...pushView, finished: true } });
    server.behave({ finish: async (id) => void finished.push(id), get: async () => view });
    const answer = await post("/v1/reloads/rl-1/finish");
    expect([answer.statusCode, answer.json(), finished]).toEqual([202, view, ["rl-1"]]);
    expect(answer.headers.location).toBe("/v1/reloads/rl-1");
  });

  it("that lacks tensors is not finished, and they are named", async () => {
    const details = { tensors: ["a", "b"], count: 2 };
    server.behave({ finish: () => Promise.reject(new LayercastError("tensor_missing", "2 tensors: a, b", details)) });
    expect((await post("/v1/reloads/rl-1/finish")).json()).toMatchObject({
      status: 422,
      code: "tensor_missing",
      details,
    });
  });
});
