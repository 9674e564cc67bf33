import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { readCheckpointTable } from "../../orchestrator/checkpoint/checkpoint-table.js";
import type { RequestDType } from "../../orchestrator/contract/dtype.js";
import type { Recipe } from "../../orchestrator/contract/recipe.js";
import { checkPlan } from "../../orchestrator/planner/check/check-plan.js";
import { planReload } from "../../orchestrator/planner/plan-reload.js";
import { layoutArena } from "../../orchestrator/program/arena-layout.js";
import { fillArena } from "../program/interpret-program.js";

const FIXTURES = path.resolve(import.meta.dirname, "../fixtures");
/** A golden `NAME-VERSION.json` is of the checkpoint `NAME/VERSION`. */
const CHECKPOINTS = readdirSync(path.join(FIXTURES, "goldens")).map((file) =>
  file.replace(/-(v\d+)\.json$/, (_, version: string) => `/${version}`),
);

type Golden = Record<string, Record<string, [dtype: string, shape: number[], sha256: string]>>;

interface Case {
  ranks: number;
  rank: number;
  scheme: Recipe;
  dtype: RequestDType;
  tensors: Golden[string];
}

/** `tp2/rank1/fp8-block`, or `tp2/rank1/none@bfloat16` where the request says a dtype. */
function caseOf([key, tensors]: [string, Golden[string]]): Case {
  const found = /^tp(\d+)\/rank(\d+)\/([^@]+)(?:@(.+))?$/.exec(key);
  if (found === null) throw new Error(`${key} is no case`);
  const [, ranks, rank, scheme, dtype = "auto"] = found;
  return {
    ranks: Number(ranks),
    rank: Number(rank),
    scheme: scheme as Recipe,
    dtype: dtype as RequestDType,
    tensors,
  };
}

it("there are goldens of every checkpoint", () => {
  const checkpoints = path.join(FIXTURES, "checkpoints");
  const versions = readdirSync(checkpoints).flatMap((name) =>
    readdirSync(path.join(checkpoints, name)).map((version) => `${name}/${version}`),
  );
  expect(versions.filter((name) => !CHECKPOINTS.includes(name))).toEqual([]);
});

describe.each(CHECKPOINTS)("the goldens of %s", (name) => {
  const golden = JSON.parse(
    readFileSync(path.join(FIXTURES, "goldens", `${name.replace("/", "-")}.json`), "utf8"),
  ) as Golden;
  const cases = Object.entries(golden).map(caseOf);
  const planFor = async ({ ranks, scheme, dtype }: Case) => {
    const { table, config } = await readCheckpointTable(path.join(FIXTURES, "checkpoints", name), {
      allowedRoots: [FIXTURES],
    });
    const request = { table, config, tensorParallelSize: ranks, expertParallel: false, scheme, dtype };
    const plan = planReload({ ...request, ignore: [] });
    checkPlan(plan, table);
    return plan;
  };

  it("have the names, dtypes and shapes of the plan, for every size, rank and recipe", async () => {
    expect(cases.length).toBeGreaterThanOrEqual(9);
    for (const one of cases) {
      const arena = layoutArena((await planFor(one)).layout, one.rank);
      const planned = Object.fromEntries(arena.tensors.map(({ name, dtype, shape }) => [name, [dtype, shape]]));
      const expected = Object.fromEntries(
        Object.entries(one.tensors).map(([name, [dtype, shape]]) => [name, [dtype, shape]]),
      );
      expect(planned).toEqual(expected);
    }
  });

  it("have the bytes of the plan where nothing is quantized", async () => {
    for (const one of cases.filter(({ scheme }) => scheme === "none" || scheme === "as-stored")) {
      const { ranks, rank, scheme, tensors } = one;
      const plan = await planFor(one);
      const arena = layoutArena(plan.layout, rank);
      const files = new Map(plan.source.files.map((file) => [file.path, new Uint8Array(readFileSync(file.path))]));
      const { bytes } = fillArena(plan, arena, rank, files);
      for (const tensor of arena.tensors) {
        const held = bytes.subarray(tensor.offset, tensor.offset + tensor.bytes);
        const digest = createHash("sha256").update(held).digest("hex");
        const expected = [scheme, ranks, rank, tensor.name, tensors[tensor.name]?.[2]];
        expect([scheme, ranks, rank, tensor.name, digest]).toEqual(expected);
      }
    }
  });
});
