// `npm run bench`: runs the cases one after the other, prints a table of each for people, and all of it as JSON into the file
// given by --json, or else as the last line. Fails when any check fails, never because a number is high.

import { mkdtempSync, rmSync, statfsSync, writeFileSync } from "node:fs";
import { freemem, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { SCHEME_NAMES, type Scheme } from "../../orchestrator/contract/recipe.js";
import type { Case, Row, Setting } from "./case.js";
import { control } from "./control.js";
import { device, growth } from "./device.js";
import { engineEqual } from "./engine-equal.js";
import { engineLoad } from "./engine-load.js";
import { heal } from "./heal.js";
import { load } from "./load.js";
import { describeMachine, machineLine, tableOf } from "./print.js";
import { push } from "./push.js";
import { queue } from "./queue.js";
import { scale } from "./scale.js";
import { stop } from "./stop.js";

const CPU_CASES: readonly Case[] = [control, stop, heal, queue, scale, load, push];
const GPU_CASES: readonly Case[] = [device, growth];
/** They need a vLLM, so they run when they are named. */
const ENGINE_CASES: readonly Case[] = [engineEqual, engineLoad];

const NAMES = [...CPU_CASES, ...GPU_CASES, ...ENGINE_CASES].map(({ name }) => name);
const USAGE = `npm run bench -- [--json FILE] [--only ${NAMES.join(",")}] [--reloads N] [--device cuda [--tp N] [--recipes LIST] [--peer COMMAND]] [--python PYTHON] [--match ROWS]`;

async function main(): Promise<number> {
  const { json, only, ...options } = parseOptions();
  const machine = describeMachine();
  const startedAt = new Date().toISOString();
  console.log(machineLine(machine));
  const results = [];
  const usual = options.device === "cpu" ? CPU_CASES : GPU_CASES;
  const cases = only === null ? usual : [...usual, ...ENGINE_CASES].filter(({ name }) => only.includes(name));
  for (const one of cases) {
    const rows = await runIn(one, options);
    console.log(`\n${tableOf(one, rows).join("\n")}`);
    results.push({
      name: one.name,
      rows: rows.map(({ what, values, checks }) => ({ what: what.trim(), ...values, checks })),
    });
  }
  const correct = results.every(({ rows }) => rows.every(({ checks }) => checks.every(({ holds }) => holds)));
  const text = JSON.stringify({ machine, started_at: startedAt, storage: storage(), correct, cases: results });
  if (json === null) console.log(`\n${text}`);
  else writeFileSync(json, `${text}\n`);
  return correct ? 0 : 1;
}

async function runIn(
  one: Case,
  options: Pick<Setting, "reloads" | "device" | "tp" | "recipes" | "peer" | "python" | "match">,
): Promise<Row[]> {
  const directory = mkdtempSync(join(storage(), "layercast-bench-"));
  const remove = () => rmSync(directory, { recursive: true, force: true, maxRetries: 10 });
  // The processes end with this one; a gigabyte in memory would stay.
  const interrupted = () => {
    remove();
    process.exit(1);
  };
  for (const signal of SIGNALS) process.once(signal, interrupted);
  try {
    return await one.run({ ...options, directory, say: (line) => console.error(`${one.name}: ${line}`) });
  } finally {
    for (const signal of SIGNALS) process.off(signal, interrupted);
    remove();
  }
}

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** Checkpoint, arenas and Redis lie in memory where there is room, so that no disk is measured. */
function storage(): string {
  const memory = "/dev/shm";
  try {
    const { bavail, bsize } = statfsSync(memory);
    return Math.min(bavail * bsize, freemem()) > NEEDED_BYTES ? memory : tmpdir();
  } catch {
    return tmpdir();
  }
}

const NEEDED_BYTES = 8 * 2 ** 30;

interface Options {
  json: string | null;
  only: string[] | null;
  reloads: number | null;
  device: string;
  tp: number;
  recipes: Scheme[];
  peer: string | null;
  python: string;
  match: RegExp | null;
}

const OPTIONS = {
  json: { type: "string" },
  only: { type: "string" },
  reloads: { type: "string" },
  device: { type: "string", default: "cpu" },
  tp: { type: "string", default: "1" },
  recipes: { type: "string", default: SCHEME_NAMES.join(",") },
  peer: { type: "string" },
  python: { type: "string", default: "python3" },
  match: { type: "string" },
} as const;

function parseOptions(): Options {
  try {
    const { values } = parseArgs({ options: OPTIONS });
    const only = values.only?.split(",") ?? null;
    const unknown = only?.find((name) => !NAMES.includes(name));
    if (unknown !== undefined) throw new Error(`there is no case ${unknown}`);
    const reloads = values.reloads === undefined ? null : wholeNumber("--reloads", values.reloads);
    const tp = wholeNumber("--tp", values.tp);
    const recipes = values.recipes.split(",").map(recipeCalled);
    const { device, python, peer = null } = values;
    const match = values.match === undefined ? null : new RegExp(values.match);
    return { json: values.json ?? null, only, reloads, device, tp, recipes, peer, python, match };
  } catch (error) {
    console.error(`${error instanceof Error ? error.message : error}\nusage: ${USAGE}`);
    process.exit(2);
  }
}

function recipeCalled(name: string): Scheme {
  const scheme = SCHEME_NAMES.find((one) => one === name);
  if (scheme === undefined) throw new Error(`there is no recipe ${name}`);
  return scheme;
}

function wholeNumber(name: string, text: string): number {
  const number = Number(text);
  if (!Number.isInteger(number) || number <= 0) throw new Error(`${name} takes a whole number`);
  return number;
}

process.exitCode = await main();
