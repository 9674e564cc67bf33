// The package as npm sees it: where it lies, which version it is, what is in it.

import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { findPackage, packageRoot } from "../orchestrator/host/package-root.js";
import { VERSION } from "../orchestrator/host/version.js";
import { runCaptured } from "./cli/captured.js";

const scratch = mkdtempSync(join(tmpdir(), "layercast-package-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const inRepository = (path: string) => readFileSync(join(packageRoot(), path), "utf8");

describe("the package's root", () => {
  it("is the directory of our package.json, not that of the project it is installed in", () => {
    const installed = join(scratch, "project", "node_modules", "layercast");
    mkdirSync(join(installed, "dist", "orchestrator"), { recursive: true });
    mkdirSync(join(installed, "native"));
    writeFileSync(join(scratch, "project", "package.json"), '{"name": "theirs", "version": "9.9.9"}');
    writeFileSync(join(scratch, "project", "package-lock.json"), "{}");
    writeFileSync(join(installed, "package.json"), '{"name": "layercast", "version": "1.2.3"}');
    writeFileSync(join(installed, "native", "package.json"), '{"private": true}');
    const found = { root: installed, version: "1.2.3" };
    expect(findPackage(join(installed, "dist", "orchestrator"))).toEqual(found);
    expect(findPackage(join(installed, "native"))).toEqual(found);
  });
});

describe("the version", () => {
  it("stands in package.json; the command line prints it and the Python package has the same", async () => {
    expect(VERSION).toBe(JSON.parse(inRepository("package.json")).version);
    expect(await runCaptured(["--version"])).toEqual({ code: 0, out: VERSION, err: "" });
    expect(inRepository("worker/python/layercast/__init__.py")).toContain(`__version__ = "${VERSION}"`);
  });
});
