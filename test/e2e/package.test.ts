// The package that `npm pack` makes, installed in an empty folder: npm's part of an installation without a network is the files
// of the archive beside the modules that the lock file calls neither of development nor optional.

import { type ChildProcess, execFileSync, spawn, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { packageRoot } from "../../orchestrator/host/package-root.js";

const root = packageRoot();
const scratch = mkdtempSync(join(tmpdir(), "layercast-packed-"));
const project = join(scratch, "project");
const installed = join(project, "node_modules", "layercast");
const cli = join(installed, "dist", "orchestrator", "cli", "main.js");
let files: string[];

beforeAll(() => {
  const pack = ["pack", "--ignore-scripts", "--json", "--pack-destination", scratch];
  const [packed] = JSON.parse(execFileSync("npm", pack, { cwd: root, encoding: "utf8" })) as {
    filename: string;
    files: { path: string }[];
  }[];
  files = packed?.files.map(({ path }) => path) ?? [];
  mkdirSync(installed, { recursive: true });
  execFileSync("tar", ["xzf", join(scratch, packed?.filename ?? ""), "-C", installed, "--strip-components=1"]);
  for (const name of neededModules()) {
    mkdirSync(dirname(join(project, name)), { recursive: true });
    symlinkSync(join(root, name), join(project, name));
  }
});
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

/** Paths as the lock file has them, those that lie within another module left out. */
function neededModules(): string[] {
  const lock = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8")) as {
    packages: Record<string, { dev?: boolean; optional?: boolean; devOptional?: boolean }>;
  };
  return Object.entries(lock.packages)
    .filter(([, { dev, optional, devOptional }]) => !dev && !optional && !devOptional)
    .map(([path]) => path)
    .filter((path) => path.lastIndexOf("node_modules/") === 0);
}

/** What a command of the installed package printed and ended with. */
function layercast(args: string[], env: NodeJS.ProcessEnv = {}) {
  const options = { cwd: project, encoding: "utf8", env: { ...process.env, ...env }, timeout: 60_000 } as const;
  const { status, stdout, stderr } = spawnSync(process.execPath, [cli, ...args], options);
  return { status, stdout, stderr };
}

describe("the packed package", () => {
  it("has the program, the core's sources and the demo's checkpoint, and neither tests nor TypeScript", () => {
    for (const file of ["dist/orchestrator/cli/main.js", "dist/worker/main.js", "dist/native/native.js", "README.md"])
      expect(files).toContain(file);
    for (const file of [
      "native/CMakeLists.txt",
      "native/src/addon.cc",
      "native/build.mjs",
      "orchestrator/dashboard/index.html",
    ])
      expect(files).toContain(file);
    expect(files.filter((file) => /\.test\.|\.ts$|\.map$|^dist\/test|^native\/build\//.test(file))).toEqual([]);
    expect(files.filter((file) => file.startsWith("test/") && !/^test\/fixtures\/.*tiny-qwen3/.test(file))).toEqual([]);
  });

  it("starts a fleet from a folder of somebody else's, reloads it, and stops", async () => {
    const up = spawn(process.execPath, [cli, "up", "--tp", "1", "--port", "0", "--source-root", installed], {
      cwd: project,
      env: { ...process.env, REDIS_URL: "", LAYERCAST_THREADS: "1" },
      stdio: ["ignore", "pipe", "pipe"],
    });
    try {
      const url = await readyUrl(up);
      const source = join(installed, "test", "fixtures", "checkpoints", "tiny-qwen3", "v1");
      const submitted = layercast(["submit", "--url", url, "--source", source, "--recipe", "fp8-channel"]);
      expect(submitted).toMatchObject({ status: 0, stderr: "" });
    } finally {
      up.kill("SIGINT");
    }
    expect(await new Promise((resolve) => up.once("exit", resolve))).toBe(0);
  });
});

function readyUrl(up: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    const lines: string[] = [];
    up.once("exit", () => reject(new Error(lines.join("\n"))));
    for (const stream of [up.stdout, up.stderr]) {
      if (stream === null) continue;
      createInterface({ input: stream }).on("line", (line) => {
        lines.push(line);
        const { url } = line.startsWith("{") ? (JSON.parse(line) as { url?: string }) : {};
        if (url !== undefined) resolve(url);
      });
    }
  });
}

describe("the packed package without a native core", () => {
  beforeAll(() => rmSync(join(installed, "native", "prebuilt"), { recursive: true }));

  it.each([["up"], ["demo"], ["worker", "--rank", "0", "--tp", "1"]])(
    "%s ends with exit code 2 and says what to type",
    (...args) => {
      const { status, stderr } = layercast(args, { REDIS_URL: "redis://127.0.0.1:1" });
      expect(status).toBe(2);
      expect(stderr).toContain(
        "core_unusable: The native core is missing, and workers cannot run without it. To build it, type",
      );
      expect(stderr).toContain(`\`node ${join(installed, "native", "build.mjs")}\``);
    },
  );

  it("can still call an orchestrator", () => {
    const { status, stderr } = layercast(["fleet", "--url", "http://127.0.0.1:1"]);
    expect(status).toBe(1);
    expect(stderr).toContain("No orchestrator answers at http://127.0.0.1:1");
  });

  it("installs where there is no compiler; `up` then says what was missing", () => {
    const build = [join(installed, "native", "build.mjs"), "--at-install"];
    expect(spawnSync(process.execPath, build, { env: { PATH: scratch, CXX: "" } }).status).toBe(0);
    const { status, stderr } = layercast(["up"]);
    expect(status).toBe(2);
    expect(stderr).toContain("cmake, a C++20 compiler (g++ or clang++), make or ninja were not found");
  });
});
