// `npm run bench`: runs the cases one after the other, prints a table of each for people, and all of it as JSON into the file
// given by --json, or else as the last line. Fails when any check fails, never because a number is high.

import { mkdtempSync, rmSync, statfsSync, writeFileSync } from "node:fs";
import { freemem, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import type { Case, Row } from "./case.js";
import { control } from "./control.js";
import { heal } from "./heal.js";
import { load } from "./load.js";
import { describeMachine, machineLine, tableOf } from "./print.js";
import { queue } from "./queue.js";
import { stop } from "./stop.js";

const CASES: readonly Case[] = [control, stop, heal, queue, load];

const USAGE = `npm run bench -- [--json FILE] [--only ${CASES.map(({ name }) => name).join(",")}] [--reloads N]`;

async function main(): Promise<number> {
  const { json, only, reloads } = parseOptions();
  const machine = describeMachine();
  const startedAt = new Date().toISOString();
  console.log(machineLine(machine));
  const results = [];
  for (const one of CASES.filter(({ name }) => only === null || only.includes(name))) {
    const rows = await runIn(one, reloads);
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

async function runIn(one: Case, reloads: number | null): Promise<Row[]> {
  const directory = mkdtempSync(join(storage(), "layercast-bench-"));
  const remove = () => rmSync(directory, { recursive: true, force: true, maxRetries: 10 });
  // The processes end with this one; a gigabyte in memory would stay.
  const interrupted = () => {
    remove();
    process.exit(1);
  };
  for (const signal of SIGNALS) process.once(signal, interrupted);
  try {
    return await one.run({ reloads, directory, say: (line) => console.error(`${one.name}: ${line}`) });
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

function parseOptions(): { json: string | null; only: string[] | null; reloads: number | null } {
  try {
    const options = { json: { type: "string" }, only: { type: "string" }, reloads: { type: "string" } } as const;
    const { values } = parseArgs({ options });
    const only = values.only?.split(",") ?? null;
    const unknown = only?.find((name) => !CASES.some((one) => one.name === name));
    if (unknown !== undefined) throw new Error(`there is no case ${unknown}`);
    const reloads = values.reloads === undefined ? null : Number(values.reloads);
    if (reloads !== null && !(Number.isInteger(reloads) && reloads > 0))
      throw new Error("--reloads takes a whole number");
    return { json: values.json ?? null, only, reloads };
  } catch (error) {
    console.error(`${error instanceof Error ? error.message : error}\nusage: ${USAGE}`);
    process.exit(2);
  }
}

process.exitCode = await main();
