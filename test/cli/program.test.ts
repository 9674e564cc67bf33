import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { createClient } from "../../orchestrator/cli/http-client.js";
import type { HooksView } from "../../orchestrator/contract/hooks.js";
import { runCaptured } from "./captured.js";
import { COMMITTED, FAILED, FLEET, RANK, reloadView } from "./views.js";

interface Asked {
  method: string;
  path: string;
  headers: IncomingMessage["headers"];
  body: unknown;
}

type Answer = (response: ServerResponse) => void;

let server: Server;
let url: string;
let asked: Asked[];
/** By "METHOD /path"; the first is used up, the last stays. */
let answers: Map<string, Answer[]>;

const json =
  (body: unknown, status = 200): Answer =>
  (response) =>
    response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));

const stream =
  (...events: { id: string; event: string; data: unknown }[]): Answer =>
  (response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.end(
      events.map((one) => `id: ${one.id}\nevent: ${one.event}\ndata: ${JSON.stringify(one.data)}\n\n`).join(""),
    );
  };

const hangUp: Answer = (response) => response.destroy();

beforeAll(async () => {
  server = createServer((request, response) => {
    let text = "";
    request.on("data", (chunk) => {
      text += chunk;
    });
    request.on("end", () => {
      const { method = "", url: path = "", headers } = request;
      asked.push({ method, path, headers, body: text === "" ? undefined : JSON.parse(text) });
      const list = answers.get(`${method} ${path}`) ?? [];
      const answer = list.length > 1 ? list.shift() : list[0];
      (answer ?? json({ code: "not_found", detail: `nothing at ${path}`, details: {} }, 404))(response);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterAll(() => new Promise((resolve) => server.close(resolve)));
beforeEach(() => {
  asked = [];
  answers = new Map();
});

function layercast(args: string, env: Record<string, string> = {}) {
  return runCaptured(args.split(" "), { env: { LAYERCAST_URL: url, ...env } });
}

const SUBMIT = "POST /v1/reloads";
const PLAN = "POST /v1/plans";
const GET = "GET /v1/reloads/reload-1";
const EVENTS = "GET /v1/reloads/reload-1/events";
const state = (id: string, name: string) => ({ id, event: "state", data: { state: name, epoch: 1, error: null } });

describe("submit", () => {
  it("sends only what was given, the source as an absolute URI", async () => {
    answers.set(SUBMIT, [json(reloadView({ state: "queued" }), 202)]);
    const { code, out } = await layercast("submit --source ./ckpt/step-1 --no-wait");
    expect(asked[0]?.body).toEqual({
      source: { kind: "safetensors", uri: pathToFileURL("ckpt/step-1").href },
      recipe: {},
      install: {},
      policy: {},
    });
    expect(code).toBe(0);
    expect(out).toContain("layercast watch reload-1");
  });

  it("turns every option into its field", async () => {
    answers.set(SUBMIT, [json(reloadView(), 202)]);
    const names = "--submission-id s1 --fleet f --weight-version w --dtype bfloat16 --recipe fp8-block";
    const install = "--in-place --allow-new-layout --allow-non-finite";
    const policy = "--coalesce latest --priority -5 --deadline 10m --layers-per-job 4";
    await layercast(`submit --source file:///ckpt ${names} ${install} ${policy} --ignore a.* *.b --no-wait`);
    expect(asked[0]?.body).toEqual({
      submission_id: "s1",
      fleet: "f",
      weight_version: "w",
      source: { kind: "safetensors", uri: "file:///ckpt" },
      dtype: "bfloat16",
      recipe: { scheme: "fp8-block", ignore: ["a.*", "*.b"] },
      install: { mode: "in_place", allow_new_layout: true, allow_non_finite: true },
      policy: { coalesce: "latest", priority: -5, deadline_ms: 600_000, layers_per_job: 4 },
    });
  });

  it("exits with 0 when the reload committed, and prints the record with --json", async () => {
    answers.set(SUBMIT, [json(reloadView(), 202)]);
    answers.set(GET, [json(reloadView()), json(COMMITTED)]);
    answers.set(EVENTS, [stream(state("1-0", "committed"))]);
    const { code, out } = await layercast("submit --source x --json");
    expect(code).toBe(0);
    expect(JSON.parse(out)).toEqual(COMMITTED);
  });

  it("has one clock on a terminal, which goes on from what events tell, never back, and ends before the time it took is said", async () => {
    const at = (ms: number) => `${Date.parse(reloadView().created_at) + ms}-0`;
    answers.set(SUBMIT, [json(reloadView(), 202)]);
    answers.set(GET, [json(reloadView()), json(reloadView()), json(COMMITTED)]);
    answers.set(EVENTS, [
      stream(state(at(60_000), "finalizing"), state(at(59_000), "committing"), state(at(61_000), "committed")),
    ]);
    const { out } = await runCaptured(["submit", "--source", "x"], { interactive: true, env: { LAYERCAST_URL: url } });
    const titles = [...out.matchAll(/reload of default to 120 {2}(\w+)(?: {2}([\d.]+) (ms|s))?(?=[^ -~]|$)/gm)];
    const seconds = titles.flatMap(([, , time, unit]) =>
      time === undefined ? [] : [Number(time) / (unit === "ms" ? 1_000 : 1)],
    );
    expect(seconds).toEqual(seconds.toSorted((a, b) => a - b));
    expect(seconds.at(-1)).toBeGreaterThanOrEqual(60);
    expect(titles.at(-1)?.slice(1, 3)).toEqual(["committed", undefined]);
    expect(out).toMatch(/committed: reload reload-1 .* in 30 ms/);
  });

  it("exits with 1 when it failed, and says why", async () => {
    answers.set(SUBMIT, [json(reloadView(), 202)]);
    answers.set(GET, [json(FAILED)]);
    const { code, out } = await layercast("submit --source x");
    expect(code).toBe(1);
    expect(out).toContain("non_finite_weights: lm_head.weight holds NaN at [3, 4]");
  });

  it("takes a broken event stream up again after the last event that it saw", async () => {
    answers.set(SUBMIT, [json(reloadView({ state: "planning" }), 202)]);
    answers.set(GET, [
      json(reloadView({ state: "planning" })),
      json(reloadView()),
      hangUp,
      json(reloadView()),
      json(COMMITTED),
    ]);
    answers.set(EVENTS, [stream(state("5-0", "loading")), stream(state("6-0", "committed"))]);
    const { code, out } = await layercast("submit --source x");
    expect(code).toBe(0);
    const states = out.split("\n").filter((line) => /^reload-1 [a-z]+$/.test(line));
    expect(states).toEqual(["reload-1 planning", "reload-1 loading", "reload-1 committed"]);
    const streams = asked.filter((one) => one.path.endsWith("/events")).map((one) => one.headers["last-event-id"]);
    expect(streams).toEqual([undefined, "5-0"]);
  });

  it("prints the plan on a dry run and submits nothing else", async () => {
    const plan = {
      model_type: "qwen3",
      tensor_parallel_size: 2,
      expert_parallel: false,
      recipe: "none",
      layout_digest: "d",
      source_digest: "s",
    };
    answers.set(PLAN, [json({ ...plan, layers: [], ranks: [], jobs_per_rank: 3, skipped: [], warnings: [] })]);
    const { out } = await layercast("submit --source x --dry-run");
    expect(asked).toHaveLength(1);
    expect(asked[0]).toMatchObject({ path: "/v1/plans", body: { fleet: "default", source: { kind: "safetensors" } } });
    expect(out).toContain("qwen3, tensor-parallel size 2, recipe none: 0 layers in 3 jobs a rank");
  });
});

describe("a reload whose record Redis has lost meanwhile", () => {
  it.each([["submit --source x --weight-version 7"], ["watch reload-1"]])(
    "(%s) says what may have happened and what to do",
    async (args) => {
      const committing = reloadView({ state: "committing", weight_version: "7" });
      answers.set(SUBMIT, [json(committing, 202)]);
      answers.set(GET, [json(committing), json({ code: "not_found", detail: "there is no reload", details: {} }, 404)]);
      answers.set(EVENTS, [stream(state("1-0", "committing"))]);
      const { code, err } = await layercast(args);
      expect(code).toBe(1);
      expect(err).toMatch(
        /^layercast: record_lost: Redis has lost the record of reload reload-1, which was committing when last seen/m,
      );
      expect(err).toMatch(/Weight version 7 may be live.*`layercast fleet default`.*submit again/);
    },
  );
});

describe("the other commands", () => {
  it("ask for what their names say", async () => {
    answers.set("GET /v1/reloads?limit=20&fleet=f", [json({ reloads: [COMMITTED], next_cursor: null })]);
    answers.set("GET /v1/fleets", [json({ fleets: [FLEET] })]);
    answers.set("GET /v1/fleets/f", [json(FLEET)]);
    answers.set("POST /v1/reloads/reload-1/cancel", [json(reloadView({ state: "cancelled" }))]);
    answers.set("POST /v1/fleets/f/rollback", [json(reloadView({ kind: "rollback" }), 202)]);
    answers.set(GET, [json(COMMITTED)]);
    expect((await layercast("status --fleet f")).out).toContain("reload-1");
    expect((await layercast("status reload-1")).out).toContain("committed: reload reload-1");
    expect((await layercast("fleet")).out).toContain("fleet default");
    expect((await layercast("fleet f --json")).out).toBe(JSON.stringify(FLEET, null, 2));
    expect((await layercast("cancel reload-1")).out).toContain("cancelled");
    expect((await layercast("watch reload-1")).code).toBe(0);
    await layercast("rollback --fleet f --to 1 --expect 2 --submission-id s --no-wait");
    expect(asked.at(-1)?.body).toEqual({ to_weight_version: "1", expected_weight_version: "2", submission_id: "s" });
    answers.set("POST /v1/plans", [json({ code: "indivisible", detail: "3 heads", details: {} }, 422)]);
    expect((await layercast("plan --source /c --tp 2 --layers-per-job auto")).code).toBe(1);
    expect(asked.at(-1)?.body).toEqual({
      source: { kind: "safetensors", uri: "file:///c" },
      tensor_parallel_size: 2,
      recipe: {},
      policy: { layers_per_job: "auto" },
    });
    const experts = async (options: string) => {
      await layercast(`plan --source /c --fleet f${options}`);
      return asked.at(-1)?.body;
    };
    expect(await experts(" --ep --recipe as-stored")).toMatchObject({
      expert_parallel: true,
      recipe: { scheme: "as-stored" },
    });
    expect(await experts(" --no-ep")).toMatchObject({ fleet: "f", expert_parallel: false });
    expect(await experts("")).not.toHaveProperty("expert_parallel");
  });

  it("send the token and take --url before LAYERCAST_URL", async () => {
    answers.set("GET /v1/fleets/f", [json(FLEET)]);
    const env = { LAYERCAST_TOKEN: "s3cret", LAYERCAST_URL: "http://127.0.0.1:1" };
    expect((await layercast(`fleet f --url ${url}/`, env)).code).toBe(0);
    expect(asked[0]?.headers.authorization).toBe("Bearer s3cret");
  });
});

describe("what a log is told while a reload waits", () => {
  const pending_reason = "fleet_incomplete: no rank of fleet default has registered";
  const queued = reloadView({ state: "queued", ranks: [], layers: [], pending_reason });
  afterEach(() => vi.useRealTimers());

  it("is how it stands at once, and again each 30 s", async () => {
    vi.useFakeTimers({ toFake: ["setInterval", "clearInterval"] });
    answers.set(GET, [json(queued)]);
    let end = () => {};
    answers.set(EVENTS, [
      (response) => {
        response.writeHead(200, { "content-type": "text/event-stream" }).flushHeaders();
        end = () => {
          answers.set(GET, [json(FAILED)]);
          response.end();
        };
      },
    ]);
    const out: string[] = [];
    const watching = runCaptured(["watch", "reload-1"], {
      env: { LAYERCAST_URL: url },
      out: (line) => void out.push(line),
    });
    await vi.waitUntil(() => asked.some(({ path }) => path.endsWith("/events")));
    expect(out).toEqual(["reload-1 queued", `reload-1 waits: ${pending_reason}`]);
    vi.advanceTimersByTime(60_000);
    expect(out.slice(2)).toEqual([1, 2].map(() => `reload-1 still queued, waits: ${pending_reason}`));
    await vi.waitUntil(() => asked.length >= 3 + 60); // the record is read again each second
    end();
    expect((await watching).code).toBe(1);
  });
});

describe("without an id", () => {
  const FLEETS = "GET /v1/fleets";
  const NEWEST = "GET /v1/reloads?limit=1";
  const busy = (name: string, active: string | null) => ({ ...FLEET, fleet: name, active_reload_id: active });

  it("watch takes the reload at work, else the newest", async () => {
    answers.set(FLEETS, [json({ fleets: [busy("a", null), busy("b", "reload-1")] })]);
    answers.set(GET, [json(reloadView()), json(COMMITTED)]);
    expect((await layercast("watch")).out).toContain("committed: reload reload-1");
    answers.set(FLEETS, [json({ fleets: [busy("a", null)] })]);
    answers.set(NEWEST, [json({ reloads: [COMMITTED], next_cursor: null })]);
    expect((await layercast("watch")).out).toContain("committed: reload reload-1");
  });

  it("cancel takes the reload at work, else the newest that waits, and never one that has ended", async () => {
    answers.set(FLEETS, [json({ fleets: [busy("a", null)] })]);
    answers.set("GET /v1/reloads?limit=1&state=queued", [
      json({ reloads: [reloadView({ reload_id: "q" })], next_cursor: null }),
    ]);
    answers.set("POST /v1/reloads/q/cancel", [json(reloadView({ reload_id: "q", state: "cancelled" }))]);
    expect((await layercast("cancel")).out).toContain("cancelled: reload q");
    answers.set("GET /v1/reloads?limit=1&state=queued", [json({ reloads: [], next_cursor: null })]);
    expect(await layercast("cancel")).toMatchObject({
      code: 1,
      err: expect.stringContaining("there is none to cancel"),
    });
  });

  it("asks which, where several fleets are at work", async () => {
    answers.set(FLEETS, [json({ fleets: [busy("a", "r1"), busy("b", "r2")] })]);
    expect(await layercast("cancel")).toMatchObject({
      code: 1,
      err: expect.stringContaining("r1, r2 are going on in 2 fleets"),
    });
  });
});

describe("the list of reloads", () => {
  it("has the time of each submit, and is asked for by state, fleet and number", async () => {
    answers.set("GET /v1/reloads?limit=7&fleet=f&state=failed", [json({ reloads: [FAILED], next_cursor: null })]);
    const { out } = await layercast("status --fleet f --state failed --limit 7");
    expect(out).toMatch(/^reload +submitted .* reason$/m);
    expect(out).toMatch(/^reload-1 +\d{4}-\d\d-\d\d \d\d:00:00 /m);
  });

  it("has all pages with --all", async () => {
    const page = (id: string, next_cursor: string | null) =>
      json({ reloads: [reloadView({ reload_id: id })], next_cursor });
    answers.set("GET /v1/reloads?limit=200", [page("newest", "c1")]);
    answers.set("GET /v1/reloads?limit=200&cursor=c1", [page("oldest", null)]);
    const { out } = await layercast("status --all --json");
    expect(JSON.parse(out).reloads.map((reload: { reload_id: string }) => reload.reload_id)).toEqual([
      "newest",
      "oldest",
    ]);
  });
});

describe("hooks", () => {
  const PATH = "/v1/fleets/default/hooks";
  const HOOKS: HooksView = {
    pause: { url: ["http://a:1/pause", "http://b:1/pause"], method: "POST", body: { mode: "abort" } },
    resume: { url: "http://a:1/resume", method: "POST", body: null },
    timeout_ms: 30_000,
    on_failure: "abort",
  };
  beforeEach(() => {
    answers.set(`GET ${PATH}`, [json(HOOKS)]);
    answers.set(`PUT ${PATH}`, [json(HOOKS)]);
    answers.set(`DELETE ${PATH}`, [(response) => response.writeHead(204).end()]);
  });

  it("are shown unless something else is asked for, a line for each request", async () => {
    const { code, out } = await layercast("hooks");
    expect(code).toBe(0);
    expect(out.split("\n")).toEqual([
      "fleet default: engines answer within 30.00 s; on failure abort",
      "hook    method  url                body",
      'pause   POST    http://a:1/pause   {"mode":"abort"}',
      'pause   POST    http://b:1/pause   {"mode":"abort"}',
      "resume  POST    http://a:1/resume",
    ]);
    expect((await layercast("hooks show --json")).out).toBe(JSON.stringify(HOOKS, null, 2));
  });

  it("are set by a preset, with only what was given", async () => {
    expect((await layercast("hooks set --preset sglang --engine http://h:1")).code).toBe(0);
    expect(asked[0]?.body).toEqual({ preset: "sglang", url: "http://h:1" });
    const engines = "--engine http://a:1 --engine http://b:1";
    await layercast(
      `hooks set --preset vllm ${engines} --mode wait --keep-cache --timeout 2m --on-failure proceed --json`,
    );
    expect(asked[1]).toMatchObject({ method: "PUT", path: PATH });
    expect(asked[1]?.body).toEqual({
      preset: "vllm",
      url: ["http://a:1", "http://b:1"],
      mode: "wait",
      clear_cache: false,
      timeout_ms: 120_000,
      on_failure: "proceed",
    });
  });

  it("are set by a file as it is", async () => {
    const scratch = mkdtempSync(join(tmpdir(), "layercast-hooks-"));
    const file = join(scratch, "hooks.json");
    writeFileSync(file, JSON.stringify({ any: ["thing"] }));
    await layercast(`hooks set --file ${file}`);
    expect(asked[0]?.body).toEqual({ any: ["thing"] });
    writeFileSync(file, "{");
    const { code, err } = await layercast(`hooks set --file ${file}`);
    expect([code, asked.length]).toEqual([1, 1]);
    expect(err).toContain(`invalid_request: ${file} cannot be read as JSON`);
    rmSync(scratch, { recursive: true });
  });

  it("are cleared", async () => {
    expect(await layercast("hooks clear")).toEqual({ code: 0, out: "fleet default has no hooks", err: "" });
    expect((await layercast("hooks clear --json")).out).toBe("null");
    expect(asked.map(({ method }) => method)).toEqual(["DELETE", "DELETE"]);
  });

  it.each([
    ["hooks drop", /Allowed choices are show, set, clear/],
    ["hooks set", /--file, or --preset with --engine/],
    ["hooks set --preset vllm", /--file, or --preset with --engine/],
    ["hooks set --preset tgi --engine http://a", /Allowed choices are vllm, sglang/],
    ["hooks set --file f --mode wait", /--file says everything/],
    ["hooks show --preset vllm", /only `hooks set`/],
    ["hooks clear --file f", /only `hooks set`/],
    ["hooks set --preset vllm --engine http://a --timeout 6m", /from 1ms to 300s/],
  ])("exit with 2 on wrong usage: %s", async (args, words) => {
    const { code, err } = await layercast(args);
    expect(code).toBe(2);
    expect(err).toMatch(words);
    expect(asked).toEqual([]);
  });
});

describe("engine-args", () => {
  const rank = { ...RANK, reload_id: "reload-1", control_path: "/run/lc/default/replica-0/rank-0/control" };

  it("prints the flags for what the fleet's ranks hold, as a shell reads them", async () => {
    answers.set("GET /v1/fleets/default", [json({ ...FLEET, ranks: [rank] })]);
    answers.set(GET, [json({ ...COMMITTED, recipe: "fp8-tensor" })]);
    const { code, out } = await layercast("engine-args vllm");
    expect(code).toBe(0);
    expect(out).toContain(`--model-loader-extra-config '{"run_dir":"/run/lc","fleet":"default"}'`);
    expect(out).toContain("fp8_per_tensor");
  });

  it("says that a fleet without weights needs a reload first", async () => {
    answers.set("GET /v1/fleets/default", [json({ ...FLEET, ranks: [{ ...rank, reload_id: null }] })]);
    const { code, err } = await layercast("engine-args vllm");
    expect(code).toBe(1);
    expect(err).toContain("commit a reload first");
  });
});

describe("drain", () => {
  it("drains the replica and shows the fleet as it then is", async () => {
    const drained = { ...FLEET, replicas: 2, drained_replicas: [{ replica: 1, state: "out" }] };
    answers.set("POST /v1/fleets/f/replicas/1/drain", [json(drained)]);
    const { code, out } = await layercast("drain --fleet f --replica 1");
    expect([code, asked.length]).toEqual([0, 1]);
    expect(out).toContain("replica 1 is drained: the others go on without it");
    expect((await layercast("drain --fleet f --replica 1 --json")).out).toBe(JSON.stringify(drained, null, 2));
  });

  it("exits with 1 and the reason when it may not be", async () => {
    const problem = { code: "invalid_request", detail: "replica 0 is the last that is not drained", details: {} };
    answers.set("POST /v1/fleets/default/replicas/0/drain", [json(problem, 400)]);
    const { code, err } = await layercast("drain --replica 0");
    expect([code, err]).toEqual([1, "layercast: invalid_request: replica 0 is the last that is not drained"]);
  });
});

describe("export", () => {
  let scratch: string;
  beforeEach(() => {
    scratch = mkdtempSync(join(tmpdir(), "layercast-export-"));
    writeFileSync(join(scratch, "made"), "tensors");
  });
  afterEach(() => rmSync(scratch, { recursive: true, force: true }));
  const made = (host: string) => ({
    export_id: "0-2-x",
    kept_s: 3600,
    host,
    path: join(scratch, "made"),
    bytes: 7,
    weight_version: "3",
    arena_generation: 4,
  });

  it("moves the rank's file to where it was asked for", async () => {
    answers.set("POST /v1/fleets/f/exports", [json(made(hostname()))]);
    const { code, out } = await layercast(`export --fleet f --replica 1 --rank 2 --out ${scratch}/out`);
    expect(code).toBe(0);
    expect(asked[0]?.body).toEqual({ replica: 1, rank: 2 });
    expect(readFileSync(join(scratch, "out"), "utf8")).toBe("tensors");
    expect(out).toBe(`${scratch}/out: 7 B, weight version 3`);
    expect(() => readFileSync(join(scratch, "made"))).toThrow(/ENOENT/);
  });

  it("reads the file through the API when it is on another host, goes on where a connection broke, and removes it there", async () => {
    answers.set("POST /v1/fleets/f/exports", [json(made("gpu-7"))]);
    const broken: Answer = (response) => {
      response.writeHead(200, { "content-length": 7 }).write("tens", () => response.destroy());
    };
    const rest: Answer = (response) => response.writeHead(206, { "content-length": 3 }).end("ors");
    answers.set("GET /v1/fleets/f/exports/0-2-x", [broken, rest]);
    answers.set("DELETE /v1/fleets/f/exports/0-2-x", [(response) => response.writeHead(204).end()]);
    const { code, err } = await layercast(`export --fleet f --rank 2 --out ${scratch}/out`);
    expect([code, err]).toEqual([0, ""]);
    expect(readFileSync(join(scratch, "out"), "utf8")).toBe("tensors");
    const [, first, second, last] = asked;
    expect([first?.headers.range, second?.headers.range, last?.method]).toEqual([undefined, "bytes=4-", "DELETE"]);
  });

  it("leaves the file where it is when it cannot be moved, and says so", async () => {
    const folder = mkdtempSync(join(scratch, "folder-"));
    const removing: Answer = (response) => {
      rmSync(folder, { recursive: true });
      json(made(hostname()))(response);
    };
    answers.set("POST /v1/fleets/f/exports", [removing]);
    const { code, err } = await layercast(`export --fleet f --rank 2 --out ${folder}/out`);
    expect(code).toBe(1);
    expect(err).toMatch(/^layercast: io_error: .*it is at .*made/);
  });
});

describe("what goes wrong", () => {
  it("is said with code, sentence and next step on standard error, with --json as JSON", async () => {
    const problem = { code: "not_found", detail: "No reload r9. `layercast status` lists them", details: { id: "r9" } };
    answers.set("GET /v1/reloads/r9", [json(problem, 404)]);
    const words = await layercast("status r9");
    expect(words).toEqual({
      code: 1,
      out: "",
      err: "layercast: not_found: No reload r9. `layercast status` lists them",
    });
    const machine = await layercast("status r9 --json");
    expect(JSON.parse(machine.err)).toEqual({
      error: { code: "not_found", message: problem.detail, retryable: false, details: { id: "r9" } },
    });
  });

  it("names the URL and the way to start one when no orchestrator answers", async () => {
    const { code, err } = await layercast("fleet --url http://127.0.0.1:1");
    expect(code).toBe(1);
    expect(err).toContain("No orchestrator answers at http://127.0.0.1:1 (");
    expect(err).toContain("layercast up");
  });

  it("says what is wrong with a LAYERCAST_URL", async () => {
    const { code, err } = await layercast("fleet", { LAYERCAST_URL: "10.0.0.7:8600" });
    expect(code).toBe(2);
    expect(err).toContain("LAYERCAST_URL is 10.0.0.7:8600. It must begin with http:// or https://, such as http://10.");
  });

  it("is said in time when an orchestrator stands still", async () => {
    answers.set("GET /v1/fleets", [() => {}]);
    const standing = createClient(url, null, 50).fleets();
    await expect(standing).rejects.toMatchObject({ code: "io_error", message: expect.stringContaining("for 50 ms") });
  });

  it.each([200, 500])("is said in time when an answer with status %i does not end", async (status) => {
    const dripping = (response: ServerResponse) => {
      response.writeHead(status, { "content-type": "application/json" }).write("{");
      const timer = setInterval(() => response.write(" "), 5);
      response.once("close", () => clearInterval(timer));
    };
    answers.set("GET /v1/fleets", [dripping]);
    const standing = createClient(url, null, 100).fleets();
    await expect(standing).rejects.toMatchObject({ code: "io_error", message: expect.stringContaining("for 100 ms") });
  });

  it("is said in time when an event stream has no sign of life", async () => {
    answers.set("GET /v1/reloads/r1/events", [(response) => response.writeHead(200).write(": life\n\n")]);
    const events = createClient(url, null, 50).events("r1", null, new AbortController().signal);
    await expect(events.next()).rejects.toMatchObject({ code: "io_error", retryable: true });
  });

  it("is not taken for Layercast's when another server answers", async () => {
    answers.set("GET /v1/fleets/f", [
      (response) => response.writeHead(502, { "content-type": "text/html" }).end("<p>"),
    ]);
    const { code, err } = await layercast("fleet f");
    expect(code).toBe(1);
    expect(err).toContain("answered 502 with text/html");
  });

  it.each([
    ["submit", /--source/],
    ["submit --source hf://Qwen/Qwen3-0.6B", /hf download Qwen\/Qwen3-0\.6B/],
    ["plan --source s3://bucket/step-1", /nothing is downloaded/],
    ["push --source Qwen/Qwen3-0.6B", /There is no directory .*Qwen\/Qwen3-0\.6B.*hf download/],
    ["fleet --url 127.0.0.1:8600", /must begin with http:\/\/ or https:\/\/, such as http:\/\/127\.0\.0\.1:8600/],
    ["fleet --url localhost:8600", /such as http:\/\/localhost:8600/],
    ["submit --source x --recipe fp4", /Allowed choices are none, fp8-tensor/],
    ["submit --source x --deadline 10", /such as 10m/],
    ["submit --source x --layers-per-job 0", /from 1 to 100000/],
    ["export --rank one --out f", /whole number/],
    ["worker --rank 0 --tp", /argument missing/],
    ["up --port 70000", /from 0 to 65535/],
    ["reload", /unknown command/],
    ["status a b", /too many arguments/],
    ["drain", /--replica/],
    ["drain --replica -1", /whole number|argument missing/],
    ["worker --rank 5 --tp 2", /--rank is 5 and --tp is 2: .* so the highest is 1/],
    ["worker --rank 2 --tp 2", /--rank is 2 and --tp is 2/],
    ["worker --rank 0 --tp 2 --replica 1", /--replica is 1 and --replicas is 1: .* so the highest is 0/],
    ["worker --rank -1 --tp 2", /whole number/],
    ["worker --rank=-1 --tp 2", /whole number/],
    ["worker --rank 0 --tp 2 --fleet ../other", /letters, digits/],
    ["up --fleet a/b", /letters, digits/],
    ["fleet --url 127.0.0.1:8600", /begin with http:\/\/ or https:\/\//],
    ["fleet --url http://", /begin with http:\/\/ or https:\/\//],
    ["submit --sorce x", /unknown option '--sorce'\n\(Did you mean --source/],
    ["export --rank 0 --ot f", /unknown option '--ot'/],
  ])("exits with 2 on wrong usage: %s", async (args, words) => {
    const { code, err } = await layercast(args);
    expect(code).toBe(2);
    expect(err).toMatch(words);
    expect(asked).toEqual([]);
  });

  it("exits with 2 when a server's settings are wrong, so that it is not started again", async () => {
    const { code, err } = await layercast("worker --rank 0 --tp 1", { REDIS_URL: "" });
    expect(code).toBe(2);
    expect(err).toContain("REDIS_URL is not set");
  });

  it.each(["fleet", "submit --source x", "up", "orchestrator"])(
    "exits with 2 when a token file is not there: %s",
    async (args) => {
      const env = { LAYERCAST_TOKEN_FILE: "/nowhere/token", REDIS_URL: "unix:/nowhere/redis.sock" };
      const { code, err } = await layercast(args, env);
      expect(code).toBe(2);
      expect(err).toMatch(/invalid_request: The token file \/nowhere\/token cannot be read \(ENOENT/);
      expect(asked).toEqual([]);
    },
  );
});
