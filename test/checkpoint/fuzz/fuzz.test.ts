// A million inputs (50,000 of them in `npm test`) for the readers of strangers' files: safetensors headers, the index, config.json. None may crash or hang them,
// or be taken for what it is not; and with any one check of the readers switched off, some is.
// LAYERCAST_FUZZ_SEED runs one seed again, LAYERCAST_FUZZ_INPUTS another number.

import { execFile } from "node:child_process";
import { randomInt } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, describe, expect, it } from "vitest";
import { type Compiled, compile, patched } from "../../compile.js";
import { DEEP } from "../../deep.js";
import { CHECKS } from "./checks.js";
import type { Fuzzed } from "./main.js";
import { blocksNotReached } from "./reach.js";

const INPUTS = Number(process.env.LAYERCAST_FUZZ_INPUTS ?? (DEEP ? 1_000_000 : 50_000));
const SEED = Number(process.env.LAYERCAST_FUZZ_SEED ?? randomInt(2 ** 31));
const TIMEOUT_MS = 600_000;
/** A machine may be busy; an input that takes this long hangs. Where one is known to hang it is found sooner. */
const SLOW_MS = 10_000;
const HANG_MS = 2_000;
const SEARCHED = 300_000;
const REACHING = 50_000;
const READERS = ["safetensors-header", "checkpoint-index", "strict-json", "model-config"];

const program = compile("test/checkpoint/fuzz/main.ts", ["test/checkpoint/fuzz", "test/schedules"]);
afterAll(() => program.remove());

async function fuzz(
  { program }: Compiled,
  inputs: number,
  { hangMs = SLOW_MS, env = {} }: { hangMs?: number; env?: Record<string, string> } = {},
): Promise<Fuzzed> {
  const args = [program, "--seed", String(SEED), "--hang-ms", String(hangMs), "0", String(inputs)];
  const options = { maxBuffer: 2 ** 26, timeout: TIMEOUT_MS, env: { ...process.env, ...env } };
  const { stdout } = await promisify(execFile)(process.execPath, args, options);
  return JSON.parse(stdout) as Fuzzed;
}

it(`${INPUTS} inputs of seed ${SEED} break no law`, { timeout: TIMEOUT_MS }, async () => {
  const { ran, failures, accepted, refused } = await fuzz(program, INPUTS);
  expect(failures).toEqual([]);
  expect(ran).toBe(INPUTS);
  // Both ways are walked often: inputs that are all refused at their first byte would show nothing.
  for (const target of ["header", "index", "config"]) {
    const [right, wrong] = [accepted[target] ?? 0, refused[target] ?? 0];
    expect(Math.min(right, wrong) / (right + wrong)).toBeGreaterThan(0.1);
  }
});

it(`${REACHING} inputs of seed ${SEED} reach every block of the readers`, { timeout: TIMEOUT_MS }, async () => {
  const reports = mkdtempSync(join(tmpdir(), "layercast-fuzz-"));
  try {
    await fuzz(program, REACHING, { env: { NODE_V8_COVERAGE: reports } });
    const files = READERS.map((name) => `orchestrator/checkpoint/${name}.js`);
    const missed = blocksNotReached(reports, program.directory, files);
    // What is thrown again is none of the readers' own.
    expect(missed.filter((block) => !/: throw error;\s*\}?$/.test(block))).toEqual([]);
  } finally {
    rmSync(reports, { recursive: true });
  }
});

describe(`some input of seed ${SEED} breaks a law without the check for`, () => {
  for (const [index, { check, patches }] of CHECKS.entries()) {
    it.concurrent(check, { timeout: TIMEOUT_MS }, async () => {
      const mutant = patched(program, String(index), patches);
      try {
        const { ran, failures } = await fuzz(mutant, SEARCHED, { hangMs: HANG_MS });
        expect(failures, `${ran} inputs have not missed it`).not.toEqual([]);
      } finally {
        mutant.remove();
      }
    });
  }
});
