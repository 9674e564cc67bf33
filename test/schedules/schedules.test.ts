// Seeded schedules of the whole protocol: the program's own transitions, driver and worker, in a world where everything may
// die, stand still, come twice or late. None may break an invariant; without any one of the rules some does.

import { execFile } from "node:child_process";
import { availableParallelism } from "node:os";
import { promisify } from "node:util";
import { afterAll, describe, expect, it } from "vitest";
import { type Compiled, compile, patched } from "../compile.js";
import { DEEP } from "../deep.js";
import { RULES } from "./rules.js";
import type { Outcome } from "./schedule.js";

const SCHEDULES = Number(process.env.LAYERCAST_SCHEDULES ?? (DEEP ? 20_000 : 1_000));
/** A rule that is switched off must be missed within so many. */
const SEARCHED = Math.max(SCHEDULES, 20_000);
const FIRST_SEED = Number(process.env.LAYERCAST_FIRST_SEED ?? 0);
const WORKERS = Math.max(2, availableParallelism());
const SEARCH_MS = DEEP ? 900_000 : 180_000;
const TIMEOUT_MS = 1_800_000;

interface Ran {
  ran: number;
  events: number;
  failed: Outcome | null;
}

const program = compile("test/schedules/main.ts", ["test/schedules"]);
afterAll(() => program.remove());

async function run({ program }: Compiled, from: number, to: number, withinMs: number): Promise<Ran> {
  const args = [program, String(from), String(to), "--within", String(withinMs)];
  const { stdout } = await promisify(execFile)(process.execPath, args, { maxBuffer: 2 ** 26 });
  return JSON.parse(stdout) as Ran;
}

/** A failing seed prints its story. */
function storyOf({ failed }: Ran): string {
  if (failed === null) return "";
  return [`seed ${failed.seed}: ${failed.violations.join("; ")}`, ...(failed.story ?? [])].join("\n");
}

describe("schedules", () => {
  it(`${SCHEDULES} of them keep every invariant`, { timeout: TIMEOUT_MS }, async () => {
    const share = Math.ceil(SCHEDULES / WORKERS);
    const runs = await Promise.all(
      Array.from({ length: WORKERS }, (_, worker) => {
        const from = FIRST_SEED + worker * share;
        return run(program, from, Math.min(from + share, FIRST_SEED + SCHEDULES), TIMEOUT_MS);
      }),
    );
    expect(runs.map(storyOf).filter((story) => story !== "")).toEqual([]);
    expect(runs.reduce((sum, { ran }) => sum + ran, 0)).toBe(SCHEDULES);
  });
});

describe("some schedule breaks without the rule", () => {
  for (const [index, { name, law, patches, isSeldomMissed = false }] of RULES.entries()) {
    if (isSeldomMissed && !DEEP) continue;
    it.concurrent(`${name}: ${law}`, { timeout: TIMEOUT_MS }, async () => {
      const mutant = patched(program, String(index), patches);
      try {
        const { ran, failed } = await run(mutant, FIRST_SEED, FIRST_SEED + SEARCHED, SEARCH_MS);
        expect(failed, `${ran} schedules have not missed it`).not.toBeNull();
      } finally {
        mutant.remove();
      }
    });
  }
});
