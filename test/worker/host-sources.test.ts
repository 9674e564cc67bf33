import { mkdtempSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { describeFile } from "../../orchestrator/checkpoint/checkpoint-file.js";
import type { CheckpointFile } from "../../orchestrator/contract/plan.js";
import type { ReloadPlan } from "../../orchestrator/fleet/plan-store.js";
import { openSources } from "../../worker/host-sources.js";
import { buildSafetensors } from "../checkpoint/build-safetensors.js";
import { expectLayercastRejection } from "../checkpoint/expect-error.js";

const OWNER = { reload: "r1", epoch: 3, content: "r1" };
const NOW = 1_000_000;

let directory: string;
let here: CheckpointFile;
let pinned: (readonly CheckpointFile[])[];
let sources: ReturnType<typeof openSources>;
beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), "layercast-host-sources-"));
  const path = join(directory, "model.safetensors");
  writeFileSync(path, buildSafetensors({ w: { dtype: "F32", shape: [2] } }));
  here = await describeFile(path);
  pinned = [];
  sources = openSources(
    async () => NOW,
    (files) => void pinned.push(files),
  );
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

/** Of a copy on another host; `ageMs` before now. */
function planned(ageMs: number): ReloadPlan {
  const files = [{ ...here, inode: "7", mtimeNs: "1" }];
  return { source: { files }, plannedAt: NOW - ageMs, kind: "safetensors" } as unknown as ReloadPlan;
}

it("a reload's files are those of its first look, and a change after that is found", async () => {
  const plan = planned(-60_000);
  const seen = (await sources.onThisHost(OWNER, plan)).source.files;
  expect(seen).toEqual([here]);
  utimesSync(here.path, 0, 0);
  expect((await sources.onThisHost(OWNER, plan)).source.files).toEqual([here]);
  await expectLayercastRejection(sources.requireUntouched(seen), "source_changed", /modification time/);
});

it("a look that fails is made again", async () => {
  await expectLayercastRejection(sources.onThisHost(OWNER, planned(60_000)), "source_changed", /written after that/);
  expect((await sources.onThisHost(OWNER, planned(-60_000))).source.files).toEqual([here]);
});

it("live bytes are said to come from the files as they were seen", async () => {
  const plan = planned(-60_000);
  await sources.onThisHost(OWNER, plan);
  sources.becameLive(OWNER, plan);
  await expect.poll(() => pinned).toEqual([[here]]);
});
