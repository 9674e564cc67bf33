// What must be right: after a committed reload every rank holds, byte for byte, what an independent program computed. Cold, into an
// arena of its own, and warm, over the same weights, into staging that was filled with a pattern.

import { readdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { compareTensors, type Golden } from "../../orchestrator/cli/compare-tensors.js";
import { type Cluster, checkpoint, FIXTURES, startCluster } from "./cluster.js";

/** By checkpoint, such as `tiny-qwen3-v1`; of each the ranks' goldens by `tp2/rank1/fp8-block`, or with `@bfloat16` after it. */
const GOLDENS = new Map(
  readdirSync(join(FIXTURES, "goldens")).map((file) => {
    const goldens = JSON.parse(readFileSync(join(FIXTURES, "goldens", file), "utf8")) as Record<string, Golden>;
    return [basename(file, ".json"), goldens];
  }),
);

describe.each([1, 2, 4])("with tensor-parallel size %i", (tp) => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await startCluster({ tp });
  });
  afterAll(() => cluster.stop());

  async function expectGoldens(body: Parameters<Cluster["reload"]>[0], goldens: readonly (Golden | undefined)[]) {
    const reload = await cluster.reload(body);
    expect(reload.error).toBeNull();
    expect(reload.state).toBe("committed");
    for (const [rank, found] of (await cluster.exportAll()).entries()) {
      const { matched, differences } = compareTensors(found, goldens[rank] ?? {});
      expect(differences).toEqual([]);
      expect(matched).toBe(Object.keys(found).length);
    }
  }

  for (const [name, goldens] of GOLDENS) {
    const [, model = "", version] = /^(.+)-(v\d+)$/.exec(name) ?? [];
    const recipes = Object.keys(goldens).flatMap((key) => new RegExp(`^tp${tp}/rank0/(.+)$`).exec(key)?.[1] ?? []);
    if (recipes.length === 0) continue;
    it.each(recipes)(`${name} as %s is equal on every rank to the known digests, cold and warm`, async (recipe) => {
      const [scheme, dtype = "auto"] = recipe.split("@");
      const expected = Array.from({ length: tp }, (_, rank) => goldens[`tp${tp}/rank${rank}/${recipe}`]);
      const body = { source: checkpoint(model, version), recipe: { scheme }, dtype };
      await expectGoldens({ ...body, install: { allow_new_layout: true } }, expected);
      await expectGoldens(body, expected);
    });
  }
});
