import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { LayercastError } from "../../orchestrator/contract/errors.js";
import type { PlanRequest, RollbackRequest, SubmitRequest } from "../../orchestrator/contract/reload.js";
import type { ReloadFilter } from "../../orchestrator/reloads/reloads.js";
import type { App } from "../../orchestrator/routes/app.js";
import { committedView, planView, reloadView, signalled, type TestServer, testServer } from "./fake-reloads.js";

const SOURCE = { kind: "safetensors", uri: "file:///ckpt/step120" };

let app: App;
let behave: TestServer["behave"];
beforeAll(async () => {
  ({ app, behave } = await testServer());
});
afterAll(() => app.close());
const post = (url: string, payload?: object) => app.inject({ method: "POST", url, ...(payload ? { payload } : {}) });
const get = (url: string) => app.inject({ method: "GET", url });

describe("submit", () => {
  it("fills in every default, nested ones too", async () => {
    const seen: SubmitRequest[] = [];
    behave({
      submit: async (request) => {
        seen.push(request);
        return { reload: reloadView(), created: true };
      },
    });
    await post("/v1/reloads", { source: SOURCE });
    expect(seen).toEqual([
      {
        fleet: "default",
        source: SOURCE,
        dtype: "auto",
        recipe: { scheme: "none", ignore: [] },
        install: { mode: "staged", staging: "auto", allow_new_layout: false, allow_non_finite: false },
        policy: {
          coalesce: "never",
          priority: 0,
          deadline_ms: 600_000,
          heal_ms: 600_000,
          attempts: 5,
          backoff_ms: 200,
          layers_per_job: "auto",
        },
        metadata: {},
      },
    ]);
  });

  it("keeps what was given beside the defaults, and defaults of one request never reach the next", async () => {
    const seen: SubmitRequest[] = [];
    behave({
      submit: async (request) => {
        request.recipe.ignore.push("touched");
        seen.push(request);
        return { reload: reloadView(), created: true };
      },
    });
    await post("/v1/reloads", { source: SOURCE, recipe: { scheme: "fp8-block" }, policy: { layers_per_job: 3 } });
    await post("/v1/reloads", { source: SOURCE });
    expect(seen[0]?.recipe.scheme).toBe("fp8-block");
    expect(seen[0]?.policy).toMatchObject({ layers_per_job: 3, attempts: 5 });
    expect(seen[1]?.recipe).toEqual({ scheme: "none", ignore: ["touched"] });
  });

  it("takes a push with a list of a hundred thousand tensors, and adds nothing to its source", async () => {
    const seen: SubmitRequest[] = [];
    behave({
      submit: async (request) => {
        seen.push(request);
        return { reload: reloadView(), created: true };
      },
    });
    const tensors = Array.from({ length: 100_000 }, (_, index) => ({
      name: `model.layers.${index}.mlp.experts.${index}.down_proj.weight`,
      dtype: "BF16",
      shape: [7168, 2048],
    }));
    const source = { kind: "push", config: { model_type: "llama", rope_scaling: { factor: 2.5 } }, tensors };
    expect((await post("/v1/reloads", { source })).statusCode).toBe(202);
    expect(seen[0]?.source).toEqual(source);
    expect((await post("/v1/plans", { source, tensor_parallel_size: 2 })).statusCode).toBe(200);
  });

  it("answers 202 with the record and its Location, for a repeat too", async () => {
    for (const created of [true, false]) {
      behave({ submit: async () => ({ reload: reloadView(), created }) });
      const answer = await post("/v1/reloads", { source: SOURCE });
      expect(answer.statusCode).toBe(202);
      expect(answer.headers.location).toBe("/v1/reloads/rl-1");
      expect(answer.json()).toEqual(reloadView());
    }
  });
});

describe("list", () => {
  it("hands filters and cursor on, with a limit of 50 unless told", async () => {
    const seen: ReloadFilter[] = [];
    behave({
      list: async (filter) => {
        seen.push(filter);
        return { reloads: [], next_cursor: "c2" };
      },
    });
    const page = await get("/v1/reloads?fleet=f1&state=failed&limit=7&cursor=c1");
    await get("/v1/reloads");
    expect(page.json()).toEqual({ reloads: [], next_cursor: "c2" });
    expect(seen).toEqual([
      { fleet: "f1", state: "failed", limit: 7, cursor: "c1", view: "full" },
      { fleet: null, state: null, limit: 50, cursor: null, view: "full" },
    ]);
  });

  it.each([
    ["limit=0", "limit"],
    ["limit=201", "limit"],
    ["limit=ten", "limit"],
    ["limit=1.5", "limit"],
    ["state=done", "state"],
    ["fleets=f1", "fleets"],
  ])("refuses %s by name", async (query, path) => {
    behave({});
    const answer = await get(`/v1/reloads?${query}`);
    expect(answer.statusCode).toBe(400);
    expect(answer.json().details).toMatchObject({ in: "query", errors: [{ path }] });
  });
});

describe("long poll", () => {
  it.each([
    ["", 0],
    ["?wait=0s", 0],
    ["?wait=250ms", 250],
    ["?wait=30s", 30_000],
    ["?wait=60s", 60_000],
    ["?wait=1m", 60_000],
  ])("reads '%s' as %i ms", async (query, waitMs) => {
    const seen: number[] = [];
    behave({
      get: async (_id, wait) => {
        seen.push(wait);
        return reloadView();
      },
    });
    expect((await get(`/v1/reloads/rl-1${query}`)).statusCode).toBe(200);
    expect(seen).toEqual([waitMs]);
  });

  it.each(["30", "61s", "2m", "-1s", "1.5s", "1h", "s", "1e3ms", ""])("refuses wait=%s", async (wait) => {
    behave({});
    const answer = await get(`/v1/reloads/rl-1?wait=${wait}`);
    expect(answer.statusCode).toBe(400);
    expect(answer.json()).toMatchObject({ code: "invalid_request", details: { errors: [{ path: "wait" }] } });
  });

  it("ends with the record as it is when the server closes", async () => {
    const began = signalled();
    const { app: closing } = await testServer({
      // Waits for ever, deaf to the signal.
      get: async (_id, waitMs) => {
        if (waitMs === 0) return reloadView();
        began.resolve();
        return new Promise(() => {});
      },
    });
    const url = await closing.listen({ port: 0 });
    const poll = fetch(`${url}/v1/reloads/rl-1?wait=60s`);
    await began.promise;
    await closing.close();
    expect(await (await poll).json()).toEqual(reloadView());
  });

  it("aborts the wait when the client goes", async () => {
    const client = new AbortController();
    const aborted = signalled();
    const { app: listening } = await testServer({
      get: (_id, waitMs, signal) =>
        new Promise((answer) => {
          if (waitMs === 0) answer(reloadView());
          signal.addEventListener("abort", () => aborted.resolve());
          client.abort();
        }),
    });
    const url = await listening.listen({ port: 0 });
    await expect(fetch(`${url}/v1/reloads/rl-1?wait=60s`, { signal: client.signal })).rejects.toThrow();
    await aborted.promise;
    await listening.close();
  });
});

describe("cancel", () => {
  it("needs no body, and takes an empty one of any client", async () => {
    behave({});
    const url = "/v1/reloads/rl-1/cancel";
    expect((await post(url)).json()).toMatchObject({ state: "cancelled" });
    const typed = await app.inject({
      method: "POST",
      url,
      headers: { "content-type": "application/json" },
      payload: "",
    });
    expect(typed.statusCode).toBe(200);
  });

  it("after the decision is 409 not_cancellable", async () => {
    behave({
      cancel: async () => {
        throw new LayercastError("not_cancellable", "reload rl-1 is committed: nothing to cancel");
      },
    });
    const answer = await post("/v1/reloads/rl-1/cancel");
    expect([answer.statusCode, answer.json().code]).toEqual([409, "not_cancellable"]);
  });
});

describe("fleets", () => {
  it("are listed and read", async () => {
    behave({});
    const { fleets } = (await get("/v1/fleets")).json();
    expect(fleets).toHaveLength(1);
    expect((await get("/v1/fleets/default")).json()).toEqual(fleets[0]);
  });

  it("routable hands min_weight_version on and is 409 with the reason when not", async () => {
    const seen: (string | null)[] = [];
    behave({
      routable: async (_fleet, min) => {
        seen.push(min);
        if (min === "121") throw new LayercastError("not_routable", "fleet default holds 119, which is older than 121");
        return { fleet: "default", routable: true, weight_version: "119" };
      },
    });
    expect((await get("/v1/fleets/default/routable")).statusCode).toBe(200);
    const refused = await get("/v1/fleets/default/routable?min_weight_version=121");
    expect([refused.statusCode, refused.json().code]).toEqual([409, "not_routable"]);
    expect(seen).toEqual([null, "121"]);
  });

  it("roll back with a body, an empty body or none, and answer 202 with Location", async () => {
    const seen: RollbackRequest[] = [];
    behave({
      rollback: async (_fleet, request) => {
        seen.push(request);
        return { reload: committedView({ kind: "rollback", reload_id: "rl-9" }), created: true };
      },
    });
    const url = "/v1/fleets/default/rollback";
    const answers = [await post(url), await post(url, {}), await post(url, { to_weight_version: "118" })];
    for (const answer of answers)
      expect([answer.statusCode, answer.headers.location]).toEqual([202, "/v1/reloads/rl-9"]);
    expect(seen).toEqual([{}, {}, { to_weight_version: "118" }]);
  });

  it("export a rank, replica 0 unless told", async () => {
    const seen: unknown[] = [];
    behave({
      exportRank: async (...asked) => {
        seen.push(asked);
        const file = { export_id: "0-1-x", kept_s: 3_600, host: "h", path: "/x", bytes: 1 };
        return { ...file, weight_version: "1", arena_generation: 2 };
      },
    });
    expect((await post("/v1/fleets/default/exports", { rank: 1 })).json()).toMatchObject({ path: "/x" });
    await post("/v1/fleets/default/exports", { replica: 2, rank: 0 });
    expect((await post("/v1/fleets/default/exports", {})).json().details.errors[0].path).toBe("rank");
    expect(seen).toEqual([
      ["default", 0, 1],
      ["default", 2, 0],
    ]);
  });
});

it("plans with defaults, for a fleet or a tensor-parallel size", async () => {
  const seen: PlanRequest[] = [];
  behave({
    plan: async (request) => {
      seen.push(request);
      return planView;
    },
  });
  const answer = await post("/v1/plans", { source: SOURCE, tensor_parallel_size: 4 });
  await post("/v1/plans", { source: SOURCE, fleet: "f", expert_parallel: true, recipe: { scheme: "as-stored" } });
  expect([answer.statusCode, answer.json()]).toEqual([200, planView]);
  expect(seen).toEqual([
    {
      source: SOURCE,
      tensor_parallel_size: 4,
      dtype: "auto",
      recipe: { scheme: "none", ignore: [] },
      policy: { layers_per_job: "auto" },
    },
    {
      source: SOURCE,
      fleet: "f",
      expert_parallel: true,
      dtype: "auto",
      recipe: { scheme: "as-stored", ignore: [] },
      policy: { layers_per_job: "auto" },
    },
  ]);
});
