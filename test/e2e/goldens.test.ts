// What must be right: after a committed reload every rank holds, byte for byte, what an independent program computed.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { compareTensors, type Golden } from "../../orchestrator/cli/compare-tensors.js";
import { SCHEME_NAMES } from "../../orchestrator/contract/recipe.js";
import { type Cluster, checkpoint, FIXTURES, startCluster } from "./cluster.js";

const GOLDENS = [
  ["tiny-qwen3", "v1"],
  ["tiny-qwen3", "v2"],
  ["tiny-qwen3", "v3"],
  ["tiny-llama", "v1"],
  ["edge-llama", "v1"],
] as const;

function golden(model: string, version: string): Record<string, Golden> {
  return JSON.parse(readFileSync(join(FIXTURES, "goldens", `${model}-${version}.json`), "utf8"));
}

describe.each([1, 2, 4])("with tensor-parallel size %i", (tp) => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await startCluster({ tp });
  });
  afterAll(() => cluster.stop());

  for (const [model, version] of GOLDENS) {
    const expected = golden(model, version);
    if (expected[`tp${tp}/rank0/none`] === undefined) continue;
    it.each(SCHEME_NAMES)(`${model} ${version} as %s is equal on every rank to the known digests`, async (scheme) => {
      const reload = await cluster.reload({
        source: checkpoint(model, version),
        recipe: { scheme },
        install: { allow_new_layout: true },
      });
      expect(reload.error).toBeNull();
      expect(reload.state).toBe("committed");
      for (const [rank, found] of (await cluster.exportAll()).entries()) {
        const { matched, differences } = compareTensors(found, expected[`tp${tp}/rank${rank}/${scheme}`] ?? {});
        expect(differences).toEqual([]);
        expect(matched).toBe(Object.keys(found).length);
      }
    });
  }
});
