import { readFileSync } from "node:fs";
import { Ajv } from "ajv";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ERRORS } from "../../orchestrator/contract/errors.js";
import type { App } from "../../orchestrator/routes/app.js";
import {
  bucketView,
  fleetView,
  hooksView,
  planView,
  pushView,
  rankProgress,
  rankPush,
  reloadView,
  testServer,
} from "./fake-reloads.js";

interface Operation {
  operationId: string;
  tags: string[];
  summary: string;
  responses: Record<string, { description: string; content?: Record<string, unknown> }>;
}
interface Document {
  openapi: string;
  paths: Record<string, Record<string, Operation>>;
  components: { schemas: Record<string, object> };
}

const ROUTES = [
  "POST /v1/reloads",
  "GET /v1/reloads",
  "GET /v1/reloads/{id}",
  "GET /v1/reloads/{id}/events",
  "POST /v1/reloads/{id}/cancel",
  "POST /v1/reloads/{id}/buckets",
  "PUT /v1/reloads/{id}/buckets/{bucket}",
  "GET /v1/reloads/{id}/buckets/{bucket}",
  "GET /v1/reloads/{id}/tensors",
  "POST /v1/reloads/{id}/finish",
  "POST /v1/plans",
  "GET /v1/fleets",
  "GET /v1/fleets/{fleet}",
  "GET /v1/fleets/{fleet}/routable",
  "POST /v1/fleets/{fleet}/rollback",
  "PUT /v1/fleets/{fleet}/hooks",
  "GET /v1/fleets/{fleet}/exports/{export}",
  "GET /v1/fleets/{fleet}/hooks",
  "DELETE /v1/fleets/{fleet}/exports/{export}",
  "DELETE /v1/fleets/{fleet}/hooks",
  "POST /v1/fleets/{fleet}/replicas/{replica}/drain",
  "POST /v1/fleets/{fleet}/replicas/{replica}/undrain",
  "POST /v1/fleets/{fleet}/exports",
  "GET /livez",
  "GET /readyz",
  "GET /version",
  "GET /metrics",
];

let app: App;
let document: Document;
let operations: [route: string, operation: Operation][];
beforeAll(async () => {
  ({ app } = await testServer());
  document = (await app.inject("/openapi.json")).json();
  operations = Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]): [string, Operation] => [
      `${method.toUpperCase()} ${path}`,
      operation,
    ]),
  );
});
afterAll(() => app.close());

function referencesIn(value: unknown): string[] {
  if (typeof value !== "object" || value === null) return [];
  return Object.entries(value).flatMap(([key, inner]) => (key === "$ref" ? [String(inner)] : referencesIn(inner)));
}

describe("the OpenAPI document", () => {
  it("is 3.1 and lists every route, and none besides", () => {
    expect(document.openapi).toBe("3.1.0");
    expect(operations.map(([route]) => route).sort()).toEqual([...ROUTES].sort());
  });

  it("gives every operation an id of its own, a tag and a summary", () => {
    expect(new Set(operations.map(([, operation]) => operation.operationId)).size).toBe(ROUTES.length);
    for (const [, { tags, summary }] of operations) expect([tags.length, summary.length > 0]).toEqual([1, true]);
  });

  it("gives every operation an answer, and every one under /v1 its problems", () => {
    for (const [route, { responses }] of operations) {
      const statuses = Object.keys(responses);
      expect(statuses.some((status) => status.startsWith("2"))).toBe(true);
      if (!route.includes("/v1/")) continue;
      expect(statuses).toEqual(expect.arrayContaining(["401", "500", "503"]));
      for (const status of statuses.filter((code) => Number(code) >= 400)) {
        expect(responses[status]?.content).toEqual({
          "application/problem+json": { schema: { $ref: "#/components/schemas/Problem" } },
        });
      }
    }
  });

  it("has every schema it refers to, under its own name", () => {
    const names = new Set(referencesIn(document).map((reference) => reference.replace("#/components/schemas/", "")));
    expect([...names].sort()).toEqual(
      expect.arrayContaining([
        "Bucket",
        "BucketRequest",
        "ExpectedTensors",
        "Fleet",
        "Plan",
        "Problem",
        "Reload",
        "Source",
        "Submit",
      ]),
    );
    for (const name of names) expect(Object.keys(document.components.schemas)).toContain(name);
  });

  it("describes the answers truly: its own schemas accept them", () => {
    const ajv = new Ajv({ strict: false, validateFormats: false });
    ajv.addSchema({ $id: "document", ...document });
    const accepts = (name: string, value: unknown) => {
      const validate = ajv.compile({ $ref: `document#/components/schemas/${name}` });
      expect([name, validate(value), validate.errors]).toEqual([name, true, null]);
    };
    accepts("Reload", reloadView());
    accepts("ReloadList", { reloads: [reloadView()], next_cursor: null });
    accepts("Fleet", fleetView());
    accepts("Plan", planView);
    accepts("Reload", reloadView({ source: "push", push: pushView, ranks: [rankProgress(0, { push: rankPush })] }));
    accepts("Bucket", bucketView({ state: "wanted" }));
    accepts("BucketRequest", { uri: "/dev/shm/b.safetensors", immutable: true });
    accepts("ExpectedTensors", {
      tensors: [{ name: "w", dtype: "BF16", shape: [2, 3], modules: ["m"], rows_received: 1 }],
    });
    accepts("Hooks", hooksView);
    accepts("HooksRequest", hooksView);
    accepts("HooksRequest", { preset: "sglang", url: ["http://a:30000", "http://b:30000"], mode: "retract" });
    accepts("Submit", {
      source: { kind: "safetensors", uri: "/x" },
      fleet: "default",
      dtype: "auto",
      metadata: {},
      recipe: { scheme: "none", ignore: [] },
      install: { mode: "staged", staging: "auto", allow_new_layout: false, allow_non_finite: false },
      policy: {
        coalesce: "never",
        priority: 0,
        deadline_ms: 1,
        heal_ms: 1,
        attempts: 1,
        backoff_ms: 1,
        layers_per_job: 2,
      },
    });
  });

  it("tells the two kinds of source apart", () => {
    const ajv = new Ajv({ strict: false, validateFormats: false });
    ajv.addSchema({ $id: "document", ...document });
    const isSource = ajv.compile({ $ref: "document#/components/schemas/Source" });
    for (const source of [
      { kind: "safetensors", uri: "/x" },
      { kind: "push", config: {} },
      { kind: "push", config: { a: 1 }, tensors: [{ name: "w", dtype: "BF16", shape: [2, 3] }], retain: "trainer" },
    ])
      expect([source, isSource(source)]).toEqual([source, true]);
    for (const source of [
      { kind: "safetensors", uri: "/x", config: {} },
      { kind: "push", uri: "/x" },
      { kind: "push", config: {}, uri: "/x" },
      { uri: "/x" },
    ])
      expect([source, isSource(source)]).toEqual([source, false]);
  });

  it("says that a bucket's body is bytes, and that every bucket route may be refused for what a bucket is refused for", () => {
    const put = document.paths["/v1/reloads/{id}/buckets/{bucket}"]?.put as {
      requestBody?: { content: object };
    } & Operation;
    expect(Object.keys(put.requestBody?.content ?? {})).toEqual(["application/octet-stream"]);
    const post = document.paths["/v1/reloads/{id}/buckets"]?.post;
    for (const operation of [put, post])
      expect(Object.keys(operation?.responses ?? {})).toEqual(
        expect.arrayContaining(["202", "409", "422", "429", "507"]),
      );
  });

  it("asks for no field that has a default", () => {
    const submit = document.components.schemas.Submit as { required?: string[] };
    expect(submit.required).toEqual(["source"]);
  });

  it("comes with a page to try it at", async () => {
    const page = await app.inject({ url: "/docs/", headers: { accept: "text/html" } });
    expect(page.statusCode).toBe(200);
    expect(page.body).toContain("swagger-ui");
    expect(page.body).not.toMatch(/(src|href)="https?:/);
  });
});

describe("the pages on the API", () => {
  const read = (name: string) => readFileSync(new URL(`../../docs/${name}`, import.meta.url), "utf8");

  it("docs/errors.md has a section for every code, with its status and whether to retry, and for no other", () => {
    const sections = read("errors.md").split(/^### /m).slice(1);
    const documented = new Map(sections.map((section) => [/^`(\w+)`/.exec(section)?.[1], section]));
    expect([...documented.keys()].sort()).toEqual(Object.keys(ERRORS).sort());
    for (const [code, { status, retryable }] of Object.entries(ERRORS)) {
      const section = documented.get(code) ?? "";
      expect(section.split("\n")[0]).toBe(`\`${code}\` · ${status} · ${retryable ? "retryable" : "not retryable"}`);
      expect(section).toMatch(/\*\*What happened\.\*\* \S/);
      expect(section).toMatch(/\*\*What to do\.\*\* \S/);
    }
  });

  it.each(ROUTES)("docs/rest-api.md shows %s with a curl line", (route) => {
    const [method, path = ""] = route.split(" ");
    const section = read("rest-api.md")
      .split(/^## /m)
      .find((text) => text.includes(`\`${method} ${path}\``));
    expect(section).toBeDefined();
    expect(section).toContain("curl");
  });
});
