// What must be right, whatever the order in which weights come: after a committed push every rank holds, byte for byte, what an
// independent program computed; in checkpoint, module and random orders, whole tensors and rows, one tensor a bucket or all in one.

import { mkdirSync, readdirSync, readFileSync, statSync } from "node:fs";
import { basename, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { compareTensors, type Golden } from "../../orchestrator/cli/compare-tensors.js";
import type { ReloadView } from "../../orchestrator/contract/reload.js";
import { DEEP, everyOther } from "../deep.js";
import { CHECKPOINTS, type Cluster, FIXTURES, startCluster } from "./cluster.js";

/** By checkpoint, such as `tiny-qwen3-v1`; of each the ranks' goldens by `tp2/rank1/fp8-block`, or with `@bfloat16` after it. */
const GOLDENS = new Map(
  readdirSync(join(FIXTURES, "goldens")).map((file) => {
    const goldens = JSON.parse(readFileSync(join(FIXTURES, "goldens", file), "utf8")) as Record<string, Golden>;
    return [basename(file, ".json"), goldens];
  }),
);

const ORDERS = [
  "--order checkpoint",
  "--order module",
  ...[1, 2, 3, 4, 5].map((seed) => `--order random --seed ${seed}`),
];
const ONE_TENSOR = "--bucket-bytes 1";
const EVERYTHING = `--bucket-bytes ${2 ** 40}`;
const quarterOf = (name: string) => `--bucket-bytes ${Math.ceil(bytesOf(name) / 4)}`;
const DELIVERIES = ["", "--bucket-dir", "--max-pending-buckets 100", "--bucket-dir --retain trainer"];

/** The next of each list at each call; their lengths have no common factor, so that all meet all. */
const takeTurns = (lists: readonly (readonly string[])[]) => {
  let turn = 0;
  return () => {
    const taken = lists.map((list) => list[turn % list.length] ?? "");
    turn += 1;
    return taken;
  };
};

describe.each([1, 2, 4])("by push, with tensor-parallel size %i", (tp) => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await startCluster({ tp });
    mkdirSync(bucketDir(cluster));
  });
  afterAll(() => cluster.stop());
  const nextWhole = takeTurns([ORDERS, DELIVERIES]);
  const nextRows = takeTurns([ORDERS.toReversed(), DELIVERIES]);

  for (const [name, goldens] of GOLDENS) {
    const recipes = everyOther(recipesOf(goldens, tp), tp === 2 ? 1 : 0);
    if (recipes.length === 0) continue;
    it.each(recipes)(`${name} as %s is equal on every rank to the known digests, whole and in rows`, async (recipe) => {
      const [order = "", delivery = ""] = nextRows();
      const whole = [...nextWhole(), quarterOf(name)];
      for (const how of sampleOf([whole, [order, delivery, EVERYTHING, rowsOf(name, order)]])) {
        await push(cluster, name, recipe, how);
        await expectGoldens(cluster, goldens, recipe);
      }
    });
  }
});

describe.each([
  ["tiny-phi3-v1", "fp8-tensor"],
  ["tiny-gemma2-v1", "fp8-block"],
])("%s as %s by push", (name, recipe) => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await startCluster({ tp: 2 });
    mkdirSync(bucketDir(cluster));
  });
  afterAll(() => cluster.stop());
  const nextDelivery = takeTurns([DELIVERIES]);

  it.each(ORDERS)("has the known digests with buckets of every size, whole and in rows, %s", async (order) => {
    const cuts = ["", "--rows 43"].flatMap((rows) =>
      [ONE_TENSOR, quarterOf(name), EVERYTHING].map((size) => [size, rows]),
    );
    for (const cut of sampleOf(cuts)) {
      await push(cluster, name, recipe, [order, ...cut, ...nextDelivery()]);
      await expectGoldens(cluster, GOLDENS.get(name) ?? {}, recipe);
    }
  });
});

/** All of them in `npm run test:deep`; else one, another each time. So it is with recipes: half of them at 2 ranks, the others at 1 and 4. */
const sampleOf = <How>(ways: How[]): How[] => {
  turn += 1;
  return DEEP ? ways : ways.slice(turn % ways.length, (turn % ways.length) + 1);
};
let turn = 0;

function recipesOf(goldens: Record<string, Golden>, tp: number): string[] {
  return Object.keys(goldens).flatMap((key) => new RegExp(`^tp${tp}/rank0/(.+)$`).exec(key)?.[1] ?? []);
}

/** In random order parts that end within a block of scales, else between two; of a large model larger ones. */
function rowsOf(name: string, order: string): string {
  const [within, between] = bytesOf(name) > 200_000 ? [100, 256] : [43, 128];
  return `--rows ${order.includes("random") ? within : between}`;
}

function bytesOf(name: string): number {
  const files = readdirSync(directoryOf(name)).filter((file) => file.endsWith(".safetensors"));
  return files.reduce((sum, file) => sum + statSync(join(directoryOf(name), file)).size, 0);
}

const directoryOf = (name: string) => join(CHECKPOINTS, ...name.split(/-(?=v\d+$)/));

const bucketDir = (cluster: Cluster) => join(cluster.sources, "buckets");

async function push(cluster: Cluster, name: string, recipe: string, how: readonly string[]): Promise<void> {
  const [scheme = "", dtype = "auto"] = recipe.split("@");
  const words = how.flatMap((options) => options.split(" ")).filter((word) => word !== "");
  const options = words.flatMap((word) => (word === "--bucket-dir" ? [word, bucketDir(cluster)] : [word]));
  const { code, out, err } = await cluster.cli(
    ...["push", "--source", directoryOf(name), "--recipe", scheme, "--dtype", dtype],
    ...["--allow-new-layout", "--json", ...options],
  );
  expect(err, how.join(" ")).toBe("");
  const { state, error, push } = JSON.parse(out) as ReloadView;
  expect({ code, state, error, finished: push?.finished }, how.join(" ")).toEqual({
    code: 0,
    state: "committed",
    error: null,
    finished: true,
  });
  expect(readdirSync(bucketDir(cluster))).toEqual([]);
}

async function expectGoldens(cluster: Cluster, goldens: Record<string, Golden>, recipe: string): Promise<void> {
  for (const [rank, found] of (await cluster.exportAll()).entries()) {
    const expected = goldens[`tp${cluster.tp}/rank${rank}/${recipe}`] ?? {};
    const { matched, differences } = compareTensors(found, expected);
    expect(differences).toEqual([]);
    expect(matched).toBe(Object.keys(found).length);
  }
}
