import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ERRORS, type ErrorCode, LayercastError } from "../../orchestrator/contract/errors.js";
import { type TestServer, testServer } from "./fake-reloads.js";

let thrown: unknown;
let server: TestServer;
beforeAll(async () => {
  server = await testServer({
    cancel: async () => {
      throw thrown;
    },
  });
});
afterAll(() => server.app.close());

const cancel = () => server.app.inject({ method: "POST", url: "/v1/reloads/rl-1/cancel" });
const throwing = (error: unknown) => {
  thrown = error;
  return cancel();
};
const submit = (body: unknown, headers: Record<string, string> = {}) =>
  server.app.inject({
    method: "POST",
    url: "/v1/reloads",
    headers: { "content-type": "application/json", ...headers },
    payload: typeof body === "string" ? body : JSON.stringify(body),
  });
const rollback = (payload: string) =>
  server.app.inject({
    method: "POST",
    url: "/v1/fleets/f1/rollback",
    headers: { "content-type": "application/json" },
    payload,
  });
const SOURCE = { kind: "safetensors", uri: "/ckpt" };
const PUSH = { kind: "push", config: { model_type: "llama" } };

describe("every error", () => {
  it.each(Object.keys(ERRORS) as ErrorCode[])("%s answers as its row says, as problem+json", async (code) => {
    const answer = await throwing(new LayercastError(code, "sentence with 7", { rank: 1 }));
    const { status, title, retryable } = ERRORS[code];
    expect(answer.statusCode).toBe(status);
    expect(answer.headers["content-type"]).toMatch(/^application\/problem\+json/);
    expect(answer.json()).toEqual({
      type: `urn:layercast:error:${code}`,
      title,
      status,
      detail: "sentence with 7",
      instance: "/v1/reloads/rl-1/cancel",
      code,
      retryable,
      details: { rank: 1 },
    });
  });

  it.each(["backpressure", "redis_unavailable"] as const)("%s says when to come back", async (code) => {
    expect((await throwing(new LayercastError(code, "later"))).headers["retry-after"]).toBe("1");
    const asked = await throwing(new LayercastError(code, "later", { retry_after_s: 4.2 }));
    expect(asked.headers["retry-after"]).toBe("5");
  });

  it("that is not ours is internal: no message, no stack, only the id under which the log has both", async () => {
    const answer = await throwing(new TypeError("secret inner state"));
    expect([answer.statusCode, answer.json().code]).toEqual([500, "internal"]);
    expect(answer.body).not.toMatch(/secret inner state|TypeError|\.ts|at /);
    const id = answer.json().details.request_id;
    const line = server.logged.find(({ reqId, level }) => reqId === id && level === 50);
    expect(JSON.stringify(line)).toContain("secret inner state");
  });

  it.each(["a string", null, undefined, Object.assign(new Error("no"), { statusCode: 503 })])(
    "thrown as %s is internal too",
    async (error) => {
      expect((await throwing(error)).json()).toMatchObject({ status: 500, code: "internal" });
    },
  );
});

describe("a lost Redis", () => {
  const withFields = (message: string, fields: object) => Object.assign(new Error(message), fields);
  it.each([
    withFields("connect ECONNREFUSED 127.0.0.1:6379", { code: "ECONNREFUSED", syscall: "connect" }),
    withFields("connect ENOENT /run/redis.sock", { code: "ENOENT", syscall: "connect" }),
    withFields("read ECONNRESET", { code: "ECONNRESET" }),
    withFields("Reached the max retries per request limit (which is 1).", { name: "MaxRetriesPerRequestError" }),
    new Error("Connection is closed."),
    new Error("Stream isn't writeable and enableOfflineQueue options is false"),
    new Error("Command timed out"),
    new Error("LOADING Redis is loading the dataset in memory"),
  ])("(%s) is redis_unavailable, 503, retryable", async (error) => {
    const answer = await throwing(error);
    expect(answer.json()).toMatchObject({ status: 503, code: "redis_unavailable", retryable: true });
    expect(answer.body).not.toContain("6379");
  });

  it("is not what a missing file is", async () => {
    const error = withFields("ENOENT: no such file, open '/x'", { code: "ENOENT", syscall: "open" });
    expect((await throwing(error)).json().code).toBe("internal");
  });
});

describe("a request that cannot be read", () => {
  it.each([
    ["malformed JSON", 400, () => submit("{no")],
    ["a prototype in JSON", 400, () => submit('{"__proto__": {"a": 1}}')],
    ["another media type", 415, () => submit("x", { "content-type": "text/plain" })],
    ["a form", 415, () => submit("a=b", { "content-type": "application/x-www-form-urlencoded" })],
    ["too large a body", 413, () => rollback(JSON.stringify({ a: "x".repeat(1_100_000) }))],
    ["too large a submission", 413, () => submit(JSON.stringify({ a: "x".repeat(68_000_000) }))],
    ["a broken escape in the URL", 400, () => server.app.inject("/v1/reloads/%E0%A4%A")],
  ] as const)("(%s) is invalid_request", async (_what, status, send) => {
    const answer = await send();
    expect(answer.statusCode).toBe(status);
    expect(answer.headers["content-type"]).toMatch(/^application\/problem\+json/);
    expect(answer.json()).toMatchObject({ status, code: "invalid_request", retryable: false });
  });

  it.each([
    ["text/plain", {}],
    ["application/x-www-form-urlencoded", {}],
    ["text/csv; charset=utf-8", {}],
  ])("of %s is told which type came and which is wanted", async (type) => {
    const { detail, details } = (await submit("x", { "content-type": type })).json();
    expect(detail).toBe(
      `the request's body came with Content-Type: ${type}; this route takes application/json: send it as that`,
    );
    expect(details).toEqual({ content_type: type, wanted: "application/json" });
  });

  it("that is a bucket is told so too, and one without a type that it has none", async () => {
    const put = (headers: Record<string, string>) =>
      server.app.inject({ method: "PUT", url: "/v1/reloads/rl-1/buckets/0", headers, payload: "{}" });
    const text = (await put({ "content-type": "text/plain" })).json();
    expect(text.detail).toContain("with Content-Type: text/plain; this route takes application/octet-stream");
    const json = (await put({ "content-type": "application/json" })).json();
    expect(json.detail).toMatch(
      /sent with Content-Type: application\/octet-stream .*came with Content-Type: application\/json/,
    );
    const none = await server.app.inject({
      method: "POST",
      url: "/v1/reloads",
      payload: Buffer.from("x"),
      headers: {},
    });
    expect(none.json().detail).toContain("without a Content-Type");
  });

  it.each([
    ['{"config":{"__proto__":1}}', /has an object with the key __proto__, which is refused wherever it stands/],
    ['{"a":[{"b":{"__proto__":{}}}]}', /key __proto__/],
    ['{"a":{"constructor":{"prototype":{}}}}', /key constructor with a key prototype in it/],
    ['{"a":', /is not valid JSON: .*end of JSON input/],
    ["{'a':1}", /is not valid JSON: /],
  ])("(%s) says what is wrong with it", async (body, sentence) => {
    const { detail } = (await submit(body)).json();
    expect(detail).toMatch(sentence);
    expect(/not valid JSON/.test(detail)).toBe(sentence.source.includes("not valid JSON"));
  });

  it.each(["/nowhere", "/v1/reloads/rl-1/nowhere", "/v2/reloads"])("GET %s is not_found", async (url) => {
    const answer = await server.app.inject(`${url}?q=1`);
    expect(answer.json()).toMatchObject({ status: 404, code: "not_found", instance: url });
  });
});

describe("an invalid body", () => {
  const errorsOf = async (body: unknown) => {
    const answer = await submit(body);
    expect(answer.json()).toMatchObject({ status: 400, code: "invalid_request", details: { in: "body" } });
    return { detail: answer.json().detail as string, errors: answer.json().details.errors as { path: string }[] };
  };

  it.each([
    [{ source: SOURCE, weights: 1 }, "weights"],
    [{ source: SOURCE, recipe: { shceme: "none" } }, "recipe.shceme"],
    [{ source: SOURCE, policy: { retries: 3 } }, "policy.retries"],
    [{ source: SOURCE, install: { mod: "staged" } }, "install.mod"],
    [{ source: { ...SOURCE, url: "x" } }, "source.url"],
    [{ source: { ...PUSH, retian: "spool" } }, "source.retian"],
    [{ source: { ...PUSH, tensors: [{ name: "a", dtype: "BF16", shape: [], file: 1 }] } }, "source.tensors.0.file"],
  ])("with an unknown field names it (%j)", async (body, path) => {
    const { detail, errors } = await errorsOf(body);
    expect(errors.map((error) => error.path)).toEqual([path]);
    expect(detail).toContain(`${path} is not a known field; known here: `);
  });

  it.each([
    [{}, "source", "is missing"],
    [{ source: {} }, "source.kind", "is missing"],
    [{ source: { kind: "gguf", uri: "/x" } }, "source.kind", "must be one of safetensors, push"],
    [{ source: { kind: "safetensors" } }, "source.uri", "is missing"],
    [{ source: { kind: "push" } }, "source.config", "is missing"],
    [{ source: { ...SOURCE, partial: true } }, "source.partial", "does not go with the other fields beside it"],
    [{ source: { ...PUSH, uri: "/ckpt" } }, "source.uri", "does not go with the other fields beside it"],
    [{ source: { ...PUSH, config: [] } }, "source.config", "must be object"],
    [{ source: { ...PUSH, retain: "none" } }, "source.retain", "must be one of spool, trainer"],
    [{ source: { ...PUSH, tensors: [{ name: "a", dtype: "INT4", shape: [] }] } }, "source.tensors.0.dtype", "BF16"],
    [{ source: { ...PUSH, tensors: [{ name: "a", dtype: "F32", shape: [-1] }] } }, "source.tensors.0.shape.0", ">= 0"],
    [{ source: SOURCE, recipe: { scheme: "int4" } }, "recipe.scheme", "must be one of none, fp8-tensor"],
    [{ source: SOURCE, recipe: { ignore: ["ok", 7] } }, "recipe.ignore.1", "must be string"],
    [{ source: SOURCE, policy: { attempts: "5" } }, "policy.attempts", "must be integer"],
    [{ source: SOURCE, policy: { layers_per_job: 0 } }, "policy.layers_per_job", '"auto" or integer >= 1'],
    [{ source: SOURCE, fleet: "../etc" }, "fleet", "must match pattern"],
    [{ source: SOURCE, metadata: { a: 1 } }, "metadata.a", "must be string"],
    [{ source: SOURCE, metadata: { a: "x".repeat(1001) } }, "metadata.a", "must NOT have more than 1000 characters"],
    [
      { source: SOURCE, metadata: { ["k".repeat(101)]: "x" } },
      `metadata.${"k".repeat(101)}`,
      "must NOT have more than 100 characters",
    ],
  ])("names the field and its rule (%j)", async (body, path, rule) => {
    const { detail, errors } = await errorsOf(body);
    expect(errors.map((error) => error.path)).toContain(path);
    expect(errors.map((error) => JSON.stringify(error)).join()).toContain(rule.replaceAll('"', '\\"'));
    expect(detail).toContain("the request's body is not valid: ");
  });

  it.each([["null"], ["[]"], ['"text"'], ["7"]])("that is %s is refused", async (body) => {
    expect((await submit(body)).json()).toMatchObject({ status: 400, code: "invalid_request" });
  });

  it("lists every bad field, but not without end", async () => {
    const two = await errorsOf({ source: SOURCE, dtype: "int8", weight_version: 1 });
    expect(two.errors.map((error) => error.path).sort()).toEqual(["dtype", "weight_version"]);
    expect(two.detail).toContain("and 1 more");
    const many = await errorsOf({ source: SOURCE, recipe: { ignore: Array.from({ length: 500 }, () => 7) } });
    expect(many.errors).toHaveLength(20);
  });

  it("says once that a key of metadata is too long, and takes one of 100 characters", async () => {
    const { errors } = await errorsOf({ source: SOURCE, metadata: { ["k".repeat(101)]: "x" } });
    expect(errors).toHaveLength(1);
    expect((await submit({ source: SOURCE, metadata: { ["k".repeat(100)]: "x" } })).statusCode).toBe(202);
  });

  it("says a thing once, for a source of either kind", async () => {
    for (const source of [{ kind: "safetensors" }, { kind: "push" }, { ...SOURCE, idle_ms: 1 }, { ...PUSH, uri: "/x" }])
      expect((await errorsOf({ source })).errors).toHaveLength(1);
  });

  it("of very many values is read to the first bad one, so that errors never outgrow it", async () => {
    const tensors = Array.from({ length: 200_000 }, () => 0);
    const { errors } = await errorsOf({ source: { ...PUSH, tensors } });
    expect(errors.map((error) => error.path)).toEqual(["source.tensors.0"]);
  });

  it("may be nested as deep as it is long", async () => {
    const depth = 1_000_000;
    const config = `${"[".repeat(depth)}${"]".repeat(depth)}`;
    const { errors } = await errorsOf(`{"source": {"kind": "push", "config": ${config}}}`);
    expect(errors.map((error) => error.path)).toEqual(["source.config"]);
  });

  it("cannot ask for parts in place", async () => {
    const answer = await submit({ source: { ...PUSH, partial: true }, install: { mode: "in_place" } });
    expect(answer.json()).toMatchObject({ status: 400, code: "invalid_request" });
    expect(answer.json().detail).toContain("a partial push in place could not be taken back");
    expect((await submit({ source: PUSH, install: { mode: "in_place" } })).statusCode).toBe(202);
  });
});

it("a path that is not a name is refused before anything is asked", async () => {
  const answer = await server.app.inject("/v1/fleets/..%2F..%2Fetc");
  expect(answer.json()).toMatchObject({ status: 400, details: { in: "params", errors: [{ path: "fleet" }] } });
});
