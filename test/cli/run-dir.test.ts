import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { claimRunDir } from "../../orchestrator/cli/local/run-dir.js";
import { packageRoot } from "../../orchestrator/host/package-root.js";

let scratch: string;
beforeAll(() => {
  scratch = mkdtempSync(join(tmpdir(), "layercast-run-"));
});
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

describe("a run directory", () => {
  it("belongs to one process, under whatever name it is reached", async () => {
    const directory = join(scratch, "mine");
    expect(await claimRunDir(directory)).toBe(directory);
    expect(readFileSync(join(directory, "up.pid"), "utf8")).toBe(`${process.pid}\n`);
    symlinkSync(directory, join(scratch, "link"));
    await expect(claimRunDir(join(scratch, "link"))).rejects.toMatchObject({
      code: "invalid_request",
      details: { path: directory, pid: String(process.pid) },
    });
  });

  it("is free again as soon as its owner is killed", async () => {
    const directory = join(scratch, "theirs");
    const module = JSON.stringify(join(packageRoot(), "dist", "orchestrator", "cli", "local", "run-dir.js"));
    const program = `import { claimRunDir } from ${module};
      console.log(await claimRunDir(${JSON.stringify(directory)}));
      setInterval(() => {}, 1000);`;
    const owner = spawn(process.execPath, ["--input-type=module", "-e", program], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    await once(owner.stdout, "data");
    await expect(claimRunDir(directory)).rejects.toThrow(String(owner.pid));
    owner.kill("SIGKILL");
    await once(owner, "exit");
    expect(await claimRunDir(directory)).toBe(directory);
  });
});
