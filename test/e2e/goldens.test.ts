// What must be right: after a committed reload every rank holds, byte for byte, what an independent program computed.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { compareTensors, type Golden } from "../../orchestrator/cli/compare-tensors.js";
import { SCHEME_NAMES } from "../../orchestrator/contract/recipe.js";
import { type Cluster, checkpoint, FIXTURES, startCluster } from "./cluster.js";

const CASES = [
  { model: "tiny-qwen3", versions: ["v1", "v2", "v3"], sizes: [1, 2, 4] },
  { model: "tiny-llama", versions: ["v1"], sizes: [1, 2] },
  { model: "edge-llama", versions: ["v1"], sizes: [1, 4] },
];

function golden(model: string, version: string): Record<string, Golden> {
  return JSON.parse(readFileSync(join(FIXTURES, "goldens", `${model}-${version}.json`), "utf8"));
}

describe.each([1, 2, 4])("with tensor-parallel size %i", (tp) => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await startCluster({ tp });
  });
  afterAll(() => cluster.stop());

  for (const { model, versions, sizes } of CASES) {
    if (!sizes.includes(tp)) continue;
    for (const scheme of SCHEME_NAMES) {
      for (const version of versions) {
        it(`${model} ${version} as ${scheme} is equal on every rank to the known digests`, async () => {
          const reload = await cluster.reload({
            source: checkpoint(model, version),
            recipe: { scheme },
            install: { allow_new_layout: true },
          });
          expect(reload.error).toBeNull();
          expect(reload.state).toBe("committed");
          const expected = golden(model, version);
          for (const [rank, found] of (await cluster.exportAll()).entries()) {
            const { matched, differences } = compareTensors(found, expected[`tp${tp}/rank${rank}/${scheme}`] ?? {});
            expect(differences).toEqual([]);
            expect(matched).toBe(Object.keys(found).length);
          }
        });
      }
    }
  }
});
