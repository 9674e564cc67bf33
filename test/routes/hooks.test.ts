import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { LayercastError } from "../../orchestrator/contract/errors.js";
import type { HooksRequest } from "../../orchestrator/contract/hooks.js";
import type { App } from "../../orchestrator/routes/app.js";
import { fleetView, hooksView, type TestServer, testServer } from "./fake-reloads.js";

const HOOKS = "/v1/fleets/f/hooks";
const BOTH = { pause: { url: "http://e/pause" }, resume: { url: "http://e/resume" } };

let app: App;
let behave: TestServer["behave"];
beforeAll(async () => {
  ({ app, behave } = await testServer());
});
afterAll(() => app.close());
const put = (payload: object) => app.inject({ method: "PUT", url: HOOKS, payload });

describe("setting hooks", () => {
  const seen: [string, HooksRequest][] = [];
  const set = async (payload: object) => {
    seen.length = 0;
    behave({
      setHooks: async (...asked) => {
        seen.push(asked);
        return hooksView;
      },
    });
    return put(payload);
  };

  it("fills in every default, and answers 200 with the hooks written out", async () => {
    const answer = await set(BOTH);
    expect([answer.statusCode, answer.json()]).toEqual([200, hooksView]);
    const posted = { method: "POST", body: null };
    expect(seen).toEqual([
      [
        "f",
        {
          pause: { ...BOTH.pause, ...posted },
          resume: { ...BOTH.resume, ...posted },
          timeout_ms: 30_000,
          on_failure: "abort",
        },
      ],
    ]);
  });

  it("keeps what was given beside the defaults", async () => {
    const given = {
      pause: { url: ["http://a", "http://b"], method: "PUT", body: [1, { deep: null }] },
      resume: { url: "http://a", method: "GET", body: null },
      timeout_ms: 1,
      on_failure: "proceed",
    };
    await set(given);
    expect(seen[0]?.[1]).toEqual(given);
    const preset = { preset: "vllm", url: ["http://a", "http://b"], mode: "wait", clear_cache: false };
    await set(preset);
    expect(seen[0]?.[1]).toEqual({ ...preset, timeout_ms: 30_000, on_failure: "abort" });
  });

  it("takes what it answered again", async () => {
    await set(hooksView);
    expect(seen).toEqual([["f", hooksView]]);
  });

  it.each<[object, path: string]>([
    [{ ...BOTH, retries: 3 }, "retries"],
    [{ ...BOTH, pause: { url: "http://e", headers: {} } }, "pause.headers"],
    [{ ...BOTH, pause: {} }, "pause.url"],
    [{ ...BOTH, pause: { url: 7 } }, "pause.url"],
    [{ ...BOTH, pause: { url: [] } }, "pause.url"],
    [{ ...BOTH, pause: { url: "http://e", method: "HEAD" } }, "pause.method"],
    [{ ...BOTH, timeout_ms: 0 }, "timeout_ms"],
    [{ ...BOTH, timeout_ms: 300_001 }, "timeout_ms"],
    [{ ...BOTH, timeout_ms: "30s" }, "timeout_ms"],
    [{ ...BOTH, on_failure: "retry" }, "on_failure"],
    [{ preset: "tgi", url: "http://e" }, "preset"],
    [{ preset: "vllm", url: "http://e", mode: "sleep" }, "mode"],
    [{ preset: "vllm", url: "http://e", clear_cache: 1 }, "clear_cache"],
  ])("refuses %j, naming the field", async (payload, path) => {
    const answer = await set(payload);
    expect([answer.statusCode, answer.json().code]).toEqual([400, "invalid_request"]);
    expect(answer.json().details.errors).toContainEqual(expect.objectContaining({ path }));
    expect(seen).toEqual([]);
  });
});

describe("reading and clearing hooks", () => {
  it("answers 200 with them, and 204 without a body once they are cleared, as often as asked", async () => {
    const cleared: string[] = [];
    behave({ clearHooks: async (fleet) => void cleared.push(fleet) });
    expect((await app.inject(HOOKS)).json()).toEqual(hooksView);
    for (const _ of [1, 2]) {
      const answer = await app.inject({ method: "DELETE", url: HOOKS });
      expect([answer.statusCode, answer.body]).toEqual([204, ""]);
    }
    expect(cleared).toEqual(["f", "f"]);
  });

  it("is 404 when there are none", async () => {
    behave({
      hooks: async () => {
        throw new LayercastError("not_found", "fleet f has no hooks");
      },
    });
    const answer = await app.inject(HOOKS);
    expect([answer.statusCode, answer.json().code]).toEqual([404, "not_found"]);
  });
});

describe("draining a replica", () => {
  const drain = (replica: string) => app.inject({ method: "POST", url: `/v1/fleets/f/replicas/${replica}/drain` });

  it("needs no body, and answers 200 with the fleet", async () => {
    const seen: unknown[] = [];
    const drained = fleetView({ replicas: 2, drained_replicas: [{ replica: 1, state: "out" }] });
    behave({
      drain: async (...asked) => {
        seen.push(asked);
        return drained;
      },
    });
    const answer = await drain("1");
    expect([answer.statusCode, answer.json()]).toEqual([200, drained]);
    expect(seen).toEqual([["f", 1]]);
  });

  it.each(["-1", "one", "1.5"])("refuses replica %s", async (replica) => {
    behave({});
    const answer = await drain(replica);
    expect([answer.statusCode, answer.json().details?.errors?.[0]?.path]).toEqual([400, "replica"]);
  });

  it.each([
    ["invalid_request", 400],
    ["not_found", 404],
  ] as const)("hands %s on as %i", async (code, status) => {
    behave({
      drain: async () => {
        throw new LayercastError(code, "replica 0 is the last that is not drained");
      },
    });
    const answer = await drain("0");
    expect([answer.statusCode, answer.json().code]).toEqual([status, code]);
  });
});
