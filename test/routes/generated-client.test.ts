// A client that is generated from the OpenAPI document, as a stranger would make one, type-checks in the ways it is used.

import { execFile } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import openapiTypes, { astToString } from "openapi-typescript";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { packageRoot } from "../../orchestrator/host/package-root.js";
import { testServer } from "./fake-reloads.js";

const USES = `
import createClient from "openapi-fetch";
import type { paths } from "./api.js";

const client = createClient<paths>({ baseUrl: "http://127.0.0.1:8600" });

export async function uses(): Promise<string> {
  // Fields with a default need not be given, and the answer has one type.
  const submitted = await client.POST("/v1/reloads", {
    body: { source: { kind: "safetensors", uri: "/ckpt" }, recipe: { scheme: "fp8-channel" } },
  });
  const id: string = submitted.data?.reload_id ?? submitted.error?.code ?? "";
  const pushed = await client.POST("/v1/reloads", { body: { source: { kind: "push", config: {}, partial: true } } });
  const state: "committed" | "failed" | undefined =
    pushed.data?.state === "committed" ? "committed" : pushed.data?.state === "failed" ? "failed" : undefined;
  const listed = await client.GET("/v1/reloads", { params: { query: { view: "summary" } } });
  const first: number | undefined = listed.data?.reloads[0]?.timing_ms.total ?? undefined;
  const planned = await client.POST("/v1/plans", {
    body: { source: { kind: "safetensors", uri: "/ckpt" }, tensor_parallel_size: 2 },
  });
  const peak: number | undefined = planned.data?.ranks[0]?.peak_memory_bytes;
  const fleet = await client.GET("/v1/fleets/{fleet}", { params: { path: { fleet: "default" } } });
  await client.POST("/v1/fleets/{fleet}/rollback", { params: { path: { fleet: "default" } }, body: {} });
  return [id, state, first, peak, fleet.data?.routable].join();
}
`;
const WRONG = `
import createClient from "openapi-fetch";
import type { paths } from "./api.js";

const client = createClient<paths>({ baseUrl: "" });
export const wrong = () => client.POST("/v1/reloads", { body: { source: { kind: "push", uri: "/ckpt" } } });
`;
const OPTIONS = {
  ...{ module: "nodenext", target: "es2022", strict: true, noEmit: true, skipLibCheck: true, types: [] },
  ...{ exactOptionalPropertyTypes: true, noUncheckedIndexedAccess: true, lib: ["es2022", "dom"] },
};

let directory: string;

beforeAll(async () => {
  // Inside of the package, so that its node_modules are found.
  mkdirSync(join(packageRoot(), ".layercast"), { recursive: true });
  directory = mkdtempSync(join(packageRoot(), ".layercast", "client-"));
  const { app } = await testServer();
  const document = (await app.inject("/openapi.json")).json();
  await app.close();
  writeFileSync(join(directory, "api.ts"), astToString(await openapiTypes(document)));
  writeFileSync(join(directory, "package.json"), JSON.stringify({ type: "module" }));
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

async function typeErrors(source: string): Promise<string> {
  writeFileSync(join(directory, "uses.ts"), source);
  const config = join(directory, "tsconfig.json");
  writeFileSync(config, JSON.stringify({ compilerOptions: OPTIONS, files: ["uses.ts"] }));
  const tsc = join(packageRoot(), "node_modules", ".bin", "tsc");
  return promisify(execFile)(tsc, ["-p", config]).then(
    () => "",
    (error: { stdout: string }) => error.stdout,
  );
}

describe("a client generated from the OpenAPI document", () => {
  it("type-checks without options of the generator", { timeout: 60_000 }, async () => {
    expect(await typeErrors(USES)).toBe("");
  });

  it("refuses a source whose fields are of another kind", { timeout: 60_000 }, async () => {
    expect(await typeErrors(WRONG)).toMatch(/'uri' does not exist|'config' is missing/);
  });
});
