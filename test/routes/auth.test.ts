import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { App } from "../../orchestrator/routes/app.js";
import { type TestServer, testServer } from "./fake-reloads.js";

const TOKEN = "correct-horse.battery~staple";

describe("with a token", () => {
  let server: TestServer;
  let app: App;
  beforeAll(async () => {
    server = await testServer({}, { token: TOKEN });
    app = server.app;
  });
  afterAll(() => app.close());

  it.each([
    ["GET", "/v1/reloads"],
    ["GET", "/v1/reloads/rl-1"],
    ["GET", "/v1/reloads/rl-1/events"],
    ["POST", "/v1/reloads"],
    ["POST", "/v1/fleets/default/rollback"],
    ["GET", "//v1/fleets"],
    ["HEAD", "/v1/fleets"],
    ["GET", "/metrics"],
    ["GET", "/nowhere"],
  ] as const)("%s %s needs it", async (method, url) => {
    const answer = await app.inject({ method, url });
    expect(answer.statusCode).toBe(401);
    expect(answer.headers["www-authenticate"]).toMatch(/^Bearer/);
    if (method !== "HEAD") expect(answer.json()).toMatchObject({ code: "unauthorized", retryable: false });
  });

  it.each(["/livez", "/readyz", "/", "/dashboard/dashboard.js", "/openapi.json", "/docs", "/docs/json"])(
    "%s is open",
    async (url) => {
      expect((await app.inject(url)).statusCode).toBeLessThan(400);
    },
  );

  it.each([
    "",
    "Bearer",
    "Bearer ",
    `Bearer ${TOKEN}x`,
    `Bearer ${TOKEN.slice(1)}`,
    `Basic ${TOKEN}`,
    TOKEN,
    `Bearer ${TOKEN} ${TOKEN}`,
  ])("refuses '%s'", async (authorization) => {
    expect((await app.inject({ url: "/v1/fleets", headers: { authorization } })).statusCode).toBe(401);
  });

  it.each([`Bearer ${TOKEN}`, `bearer ${TOKEN}`])(
    "takes '%s', from any origin and under any name",
    async (authorization) => {
      const headers = { authorization, host: "fleet.example:8600", origin: "https://elsewhere.example" };
      expect((await app.inject({ url: "/v1/fleets", headers })).statusCode).toBe(200);
    },
  );

  it("never logs it", async () => {
    await app.inject({ url: "/v1/nowhere", headers: { authorization: `Bearer ${TOKEN}` } });
    expect(server.logged.length).toBeGreaterThan(0);
    expect(JSON.stringify(server.logged)).not.toContain(TOKEN);
  });
});

describe("without a token", () => {
  let app: App;
  beforeAll(async () => {
    ({ app } = await testServer());
  });
  afterAll(() => app.close());

  it.each(["localhost:8600", "127.0.0.1", "[::1]:8600"])("answers host %s and its own pages", async (host) => {
    for (const headers of [{ host }, { host, origin: `http://${host}` }]) {
      expect((await app.inject({ url: "/v1/fleets", headers })).statusCode).toBe(200);
    }
  });

  it.each([
    [{ host: "localhost:8600", origin: "https://elsewhere.example" }],
    [{ host: "localhost:8600", origin: "http://localhost:9999" }],
    [{ host: "localhost:8600", origin: "null" }],
    [{ host: "rebound.example:8600" }],
    [{ host: "rebound.example:8600", origin: "http://rebound.example:8600" }],
  ])("refuses what a browser brings from a foreign page: %j", async (headers) => {
    const answer = await app.inject({ method: "POST", url: "/v1/fleets/default/rollback", headers });
    expect(answer.json()).toMatchObject({ status: 401, code: "unauthorized" });
  });
});
