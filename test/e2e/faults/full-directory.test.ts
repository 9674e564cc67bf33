// A run directory without room: a reload that needs more fails with the numbers and changes nothing, and the next one that
// fits commits. A small file system of its own needs a mount, so this is for root.

import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, statfsSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { describeFaults } from "./fault-fleet.js";

/** Room for what stands, Redis's file and exports; not for another arena. */
const SIZE = "64m";
const FREE_BYTES = 512 * 1024;

const directory = mountSmall();
afterAll(() => {
  if (directory === null) return;
  execFileSync("umount", ["--lazy", directory]);
  rmSync(directory, { recursive: true });
});

/** null where this user may not mount. */
function mountSmall(): string | null {
  const path = mkdtempSync(join(tmpdir(), "layercast-small-"));
  try {
    execFileSync("mount", ["-t", "tmpfs", "-o", `size=${SIZE}`, "tmpfs", path], { stdio: "ignore" });
    return path;
  } catch {
    rmSync(path, { recursive: true });
    return null;
  }
}

describe.skipIf(directory === null)("in a small file system (skipped where mount is not permitted)", () => {
  const runDir = directory === null ? "" : join(directory, "run");

  describeFaults("a full run directory", { tp: 2, runDir }, (fleet) => {
    it("fails a reload that needs room for another layout, with the numbers; once there is room it commits", async () => {
      const filler = join(directory ?? "", "filler");
      fill(filler);
      const bigger = { recipe: { scheme: "none" }, install: { allow_new_layout: true } };
      const refused = await fleet.cluster.ended((await fleet.submit("v2", bigger)).reload_id);
      expect(refused).toMatchObject({ state: "failed", live_changed: false, error: { code: "out_of_memory" } });
      expect(refused.error?.message).toMatch(/reserving \d{7} bytes for .*next\.safetensors/);
      await fleet.cluster.fleetWhere(({ routable, weight_version }) => routable && weight_version === "v1");
      rmSync(filler);
      await fleet.holds("v1");
      await fleet.goesOn();
    });
  });
});

/** Leaves less free than another arena needs, and enough for Redis's file. */
function fill(path: string): void {
  const { bavail, bsize } = statfsSync(dirname(path));
  writeFileSync(path, Buffer.alloc(bavail * bsize - FREE_BYTES));
}
