// Named places where the tests make a process fail. Off unless LAYERCAST_FAULTS names a directory; then each file in it,
// `<point>.<n>.<action>` or `<point>@<scope>.<n>.<action>`, is one fault for whoever reaches the point first: the file is
// renamed to `….hit` and holds the id of that process, so a test can wait for it, and a restarted process does not meet it
// again.

import { existsSync, readdirSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { LayercastError } from "../contract/errors.js";

const directory = process.env.LAYERCAST_FAULTS ?? null;
const POLL_MS = 5;

/** Actions: `fail` throws a retryable error, `kill` and `stop` are signals to itself, `wait` lasts until `….hit` is removed. */
export async function faultPoint(point: string, scope = ""): Promise<void> {
  if (directory === null) return;
  const fault = takeFault(directory, [`${point}.`, `${point}@${scope}.`]);
  if (fault === null) return;
  const { path, action } = fault;
  if (action === "kill") process.kill(process.pid, "SIGKILL");
  if (action === "stop") process.kill(process.pid, "SIGSTOP");
  if (action === "fail") throw new LayercastError("internal", `fault injected at ${point}`, { point });
  while (action === "wait" && existsSync(path)) await delay(POLL_MS);
}

/** Reaches the point while the work is under way. */
export async function faultDuring<Result>(work: Promise<Result>, point: string, scope: string): Promise<Result> {
  const [result] = await Promise.all([work, faultPoint(point, scope)]);
  return result;
}

function takeFault(from: string, prefixes: string[]): { path: string; action: string } | null {
  const names = readdirSync(from).sort();
  for (const name of names) {
    if (name.endsWith(".hit") || !prefixes.some((prefix) => name.startsWith(prefix))) continue;
    const path = join(from, `${name}.hit`);
    try {
      renameSync(join(from, name), path);
    } catch {
      continue; // another process was faster
    }
    sign(path);
    return { path, action: name.slice(name.lastIndexOf(".") + 1) };
  }
  return null;
}

function sign(path: string): void {
  try {
    writeFileSync(path, String(process.pid), { flag: "r+" });
  } catch {
    // taken away already: the test has moved on
  }
}
