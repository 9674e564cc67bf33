import { describe, expect, it } from "vitest";
import { LayercastError } from "../../orchestrator/contract/errors.js";
import type { HooksRequest } from "../../orchestrator/contract/hooks.js";
import { hooksOf, viewHooks } from "../../orchestrator/reloads/hooks-of.js";

const DEFAULTS = { timeout_ms: 30_000, on_failure: "abort" } as const;
const hooks = (fields: Partial<HooksRequest>) => hooksOf({ ...DEFAULTS, ...fields });
const request = (url: string | string[], body: unknown = null) => ({ url, method: "POST", body }) as const;

describe("a preset", () => {
  const AT = "http://host:8000";
  it.each<[Partial<HooksRequest>, path: string, body: unknown]>([
    [{ preset: "vllm" }, "/pause?mode=keep&clear_cache=true", null],
    [{ preset: "vllm", mode: "wait" }, "/pause?mode=wait&clear_cache=true", null],
    [{ preset: "vllm", mode: "abort", clear_cache: false }, "/pause?mode=abort&clear_cache=false", null],
    [{ preset: "sglang" }, "/pause_generation", { mode: "abort" }],
    [{ preset: "sglang", mode: "retract" }, "/pause_generation", { mode: "retract" }],
    [{ preset: "sglang", mode: "in_place" }, "/pause_generation", { mode: "in_place" }],
  ])("%j pauses with POST %s and body %j", (fields, path, body) => {
    expect(hooks({ ...fields, url: AT }).pause).toEqual({ urls: [AT + path], method: "POST", body });
  });

  it.each<["vllm" | "sglang", path: string, body: unknown]>([
    ["vllm", "/resume", null],
    ["sglang", "/continue_generation", {}],
  ])("%s resumes with POST %s and body %j", (preset, path, body) => {
    expect(hooks({ preset, url: AT }).resume).toEqual({ urls: [AT + path], method: "POST", body });
  });

  it("with a url a replica calls each replica's engine, in their order", () => {
    const { pause, resume } = hooks({ preset: "vllm", url: ["http://b:1", "http://a:1"] });
    expect(resume.urls).toEqual(["http://b:1/resume", "http://a:1/resume"]);
    expect(pause.urls.map((url) => new URL(url).host)).toEqual(["b:1", "a:1"]);
  });

  it.each(["http://host:8000", "http://host:8000/", "http://host:8000//"])("takes %s as one address", (url) => {
    expect(hooks({ preset: "vllm", url }).resume.urls).toEqual(["http://host:8000/resume"]);
  });

  it("goes below the path that an address has", () => {
    expect(hooks({ preset: "vllm", url: "https://proxy/engine-1/" }).resume.urls).toEqual([
      "https://proxy/engine-1/resume",
    ]);
  });
});

describe("hooks written out", () => {
  it("are taken as they are", () => {
    const pause = { ...request(["http://a/p", "http://b/p"], { any: ["json", 1] }), method: "PUT" } as const;
    const made = hooks({ pause, resume: request("http://a/r"), timeout_ms: 5, on_failure: "proceed" });
    expect(made).toEqual({
      pause: { urls: ["http://a/p", "http://b/p"], method: "PUT", body: { any: ["json", 1] } },
      resume: { urls: ["http://a/r"], method: "POST", body: null },
      timeoutMs: 5,
      onFailure: "proceed",
    });
  });

  it.each<Partial<HooksRequest>>([
    { preset: "sglang", url: "http://host:30000" },
    { preset: "vllm", url: ["http://a:1", "http://b:1"], on_failure: "proceed" },
    { pause: request("http://a/p", { x: null }), resume: request("http://a/r") },
  ])("as they are shown make the same hooks again: %j", (fields) => {
    const made = hooks(fields);
    expect(hooksOf(viewHooks(made) as HooksRequest)).toEqual(made);
  });
});

describe("refused, by the field that is wrong", () => {
  const both = { pause: request("http://a/p"), resume: request("http://a/r") };
  it.each<[Partial<HooksRequest>, path: string, words: RegExp]>([
    [{}, "pause", /give pause and resume, or a preset/],
    [{ pause: both.pause }, "resume", /what is paused must be resumed/],
    [{ ...both, url: "http://a" }, "url", /goes with a preset/],
    [{ ...both, mode: "keep" }, "mode", /goes with a preset/],
    [{ ...both, clear_cache: true }, "clear_cache", /goes with a preset/],
    [{ preset: "vllm" }, "url", /say where the vllm engine is/],
    [{ preset: "vllm", url: "http://a", pause: both.pause }, "pause", /preset vllm says what pause is/],
    [{ preset: "vllm", url: "http://a", mode: "in_place" }, "mode", /keep, wait, abort/],
    [{ preset: "sglang", url: "http://a", mode: "keep" }, "mode", /abort, retract, in_place/],
    [{ preset: "sglang", url: "http://a", clear_cache: true }, "clear_cache", /an option of preset vllm/],
    [{ preset: "vllm", url: "http://a?x=1" }, "url", /leave what follows/],
    [{ preset: "vllm", url: ["http://a", "host:8000"] }, "url", /is "host:8000", but must be a full http/],
    [{ ...both, resume: request("ftp://a/r") }, "resume.url", /full http:\/\/ or https:\/\/ URL/],
    [{ ...both, pause: request("/pause") }, "pause.url", /is "\/pause"/],
    [{ ...both, pause: { ...request("http://a/p", {}), method: "GET" } }, "pause.body", /GET, which carries no body/],
    [{ ...both, pause: request("http://a/p", "x".repeat(20_000)) }, "pause.body", /20002 bytes as JSON; at most 16384/],
  ])("%j", (fields, path, words) => {
    const error = refusalOf(fields);
    expect(error.code).toBe("invalid_request");
    expect(error.details).toMatchObject({ in: "body", errors: [{ path }] });
    expect(error.message).toMatch(words);
  });

  it.each(["http://user:secret@host/p", "http://secret@host/p", "ftp://u:secret@host", "http://u:secret@ho st/"])(
    "%s, whose password is repeated nowhere",
    (url) => {
      const error = refusalOf({ ...both, pause: request(url) });
      expect(error.code).toBe("invalid_request");
      expect(JSON.stringify([error.message, error.details])).not.toContain("secret");
    },
  );

  function refusalOf(fields: Partial<HooksRequest>): LayercastError {
    try {
      hooks(fields);
    } catch (error) {
      if (error instanceof LayercastError) return error;
      throw error;
    }
    throw new Error("it was taken");
  }
});
