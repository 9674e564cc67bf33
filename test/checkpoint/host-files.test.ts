// A file that another host described, as this host has it: copies are known by what they hold, and held to what they were.

import { copyFileSync, mkdtempSync, rmSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { describeFile, requireUntouched, verifyFiles } from "../../orchestrator/checkpoint/checkpoint-file.js";
import { bucketOnThisHost, filesOnThisHost } from "../../orchestrator/checkpoint/host-files.js";
import type { CheckpointFile } from "../../orchestrator/contract/plan.js";
import { buildSafetensors } from "./build-safetensors.js";
import { expectLayercastRejection } from "./expect-error.js";

/** Planned before, or after, everything that a test writes. */
const BEFORE_ALL_MS = 3_600_000;
const AFTER_ALL_MS = -60_000;

let directory: string;
let path: string;
let here: CheckpointFile;
/** As another host has it: what only this host can say is another. */
let elsewhere: CheckpointFile;
beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), "layercast-host-files-"));
  path = join(directory, "model.safetensors");
  writeFileSync(path, buildSafetensors({ w: { dtype: "F32", shape: [2] } }));
  here = await describeFile(path);
  elsewhere = { ...here, inode: "7", mtimeNs: "1700000000000000000" };
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

describe("a file that another host described", () => {
  it("is taken as it is when it is the very same, however new", async () => {
    expect(await filesOnThisHost([here], null)).toEqual([here]);
    expect(await filesOnThisHost([here], BEFORE_ALL_MS)).toEqual([here]);
  });

  it("is taken as this host has it when it is a copy that was there before the plan", async () => {
    expect(await filesOnThisHost([elsewhere], AFTER_ALL_MS)).toEqual([here]);
    expect(await filesOnThisHost([{ ...here, inode: "7" }], AFTER_ALL_MS)).toEqual([here]);
    expect(await filesOnThisHost([{ ...here, mtimeNs: "1" }], AFTER_ALL_MS)).toEqual([here]);
  });

  it("is changed when it was written after the plan, whatever its times say", async () => {
    utimesSync(path, 0, 0);
    await expectLayercastRejection(filesOnThisHost([elsewhere], BEFORE_ALL_MS), "source_changed", /written after that/);
    await expectLayercastRejection(filesOnThisHost([elsewhere], null), "source_changed", /inode or modification time/);
  });

  it("is changed when it has another size or header", async () => {
    const longer = { ...elsewhere, sizeBytes: here.sizeBytes + 1 };
    await expectLayercastRejection(filesOnThisHost([longer], AFTER_ALL_MS), "source_changed", /size in bytes/);
    const other = { ...elsewhere, headerDigest: "0" };
    await expectLayercastRejection(filesOnThisHost([other], AFTER_ALL_MS), "source_changed", /header digest/);
  });

  it("is missing on the host that looked", async () => {
    rmSync(path);
    const error = await expectLayercastRejection(
      filesOnThisHost([elsewhere], AFTER_ALL_MS),
      "source_not_found",
      /on host/,
    );
    expect(error.details).toMatchObject({ file: path, host: expect.any(String) });
  });

  it.each([
    ["written to", () => writeFileSync(path, buildSafetensors({ w: { dtype: "F32", shape: [2] } }))],
    ["touched", () => utimesSync(path, 0, 0)],
    [
      "replaced",
      () => {
        copyFileSync(path, `${path}.new`);
        rmSync(path);
        copyFileSync(`${path}.new`, path);
        const { atime, mtime } = statSync(path);
        utimesSync(path, atime, mtime);
      },
    ],
  ])("is held to its first look: %s later, it has changed", async (_how, change) => {
    const seen = await filesOnThisHost([elsewhere], AFTER_ALL_MS);
    await verifyFiles(seen);
    change();
    await expectLayercastRejection(verifyFiles(seen), "source_changed", /has changed/);
    await expectLayercastRejection(requireUntouched(seen), "source_changed", /has changed/);
  });
});

describe("a bucket's file", () => {
  it("may have another inode number here, but not another time", async () => {
    expect(await bucketOnThisHost({ ...here, inode: "7" })).toEqual(here);
    const old = { ...here, inode: "7", mtimeNs: "1" };
    expect(await bucketOnThisHost(old)).toEqual(old); // whoever reads it will say so
  });

  it("of another header is another", async () => {
    const other = { ...here, inode: "7", headerDigest: "0" };
    await expectLayercastRejection(bucketOnThisHost(other), "source_changed", /header digest/);
  });
});
