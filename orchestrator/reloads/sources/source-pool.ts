// Source work under a deadline, in a few processes for each root. A thread that a file system holds cannot be ended, and four of
// them are all that a process has: in the orchestrator's own they would hold up everything else. A process can be ended, and where
// the kernel will not even do that, it is left behind and counts, so that a root takes no more than its share.

import { type ChildProcess, fork } from "node:child_process";
import { hostname } from "node:os";
import { sep } from "node:path";
import { fileURLToPath } from "node:url";
import { pathOfUri } from "../../checkpoint/source-path.js";
import { type ErrorReport, errorFromReport, LayercastError } from "../../contract/errors.js";
import { type Lane, openLane } from "./source-lane.js";
import type { SourceFiles } from "./source-work.js";

type Name = keyof SourceFiles;

export interface SourceTask {
  name: Name;
  args: unknown[];
}

export type SourceAnswer = { value: unknown } | { error: ErrorReport };

export interface SourcePool extends SourceFiles {
  /** Ends all of its processes. */
  close(): void;
}

/** For a look at a path; to read headers; to compare bytes, besides; to copy a file. */
const LOOK_MS = 8_000;
const READ_MS = 45_000;
const SLOWEST_BYTES_PER_MS = 20_000;
const COPY_MS = 300_000;

export function openSourcePool(
  roots: readonly string[],
  start: () => ChildProcess = () => startProcess(roots),
): SourcePool {
  const lanes = new Map<string, Lane<SourceAnswer>>();
  const laneOf = (path: string) => {
    const key = rootOf(path, roots);
    const lane = lanes.get(key) ?? openLane<SourceAnswer>(start);
    lanes.set(key, lane);
    return lane;
  };
  async function run<Value>(name: Name, args: unknown[], path: string, withinMs: number): Promise<Value> {
    const answer = await laneOf(path).run({ name, args }, withinMs);
    if (answer === null) throw silent(path, withinMs);
    if ("error" in answer) throw errorFromReport(answer.error);
    return answer.value as Value;
  }
  return {
    resolve: async (uri) => run("resolve", [uri], pathOfUri(uri), LOOK_MS),
    readTable: async (uri) => run("readTable", [uri], pathOfUri(uri), READ_MS),
    headerBytes: (path) => run("headerBytes", [path], path, LOOK_MS),
    readFile: (path) => run("readFile", [path], path, READ_MS),
    verifyFiles: (files, plannedAgoMs) => run("verifyFiles", [files, plannedAgoMs], files[0]?.path ?? sep, READ_MS),
    requireSameBucket: (file) => run("requireSameBucket", [file], file.path, READ_MS),
    hasEqualTensors: (known, came) => run("hasEqualTensors", [known, came], came.path, bytesMs(came.sizeBytes)),
    keepFile: (spool, from, ...rest) => run("keepFile", [spool, from, ...rest], from, COPY_MS),
    close() {
      for (const lane of lanes.values()) lane.close();
    },
  };
}

/** The root that a path is named under, as far as that can be told without touching it: one lane takes all others. */
function rootOf(path: string, roots: readonly string[]): string {
  return roots.find((root) => path === root || path.startsWith(root.endsWith(sep) ? root : root + sep)) ?? "";
}

function silent(path: string, withinMs: number): LayercastError {
  return new LayercastError(
    "io_error",
    `the file system that ${path} lies on did not answer within ${withinMs} ms; look at its mount on host ${hostname()}, and try again`,
    { path, within_ms: withinMs, host: hostname() },
  );
}

const bytesMs = (bytes: number) => READ_MS + bytes / SLOWEST_BYTES_PER_MS;

function startProcess(roots: readonly string[]): ChildProcess {
  const program = fileURLToPath(new URL("./source-process.js", import.meta.url));
  const faults = process.env.LAYERCAST_FAULTS;
  return fork(program, [JSON.stringify(roots)], {
    // It needs neither the token nor Redis, and a Ctrl-C on the terminal is its orchestrator's to handle.
    env: faults === undefined ? {} : { LAYERCAST_FAULTS: faults },
    execArgv: [],
    detached: true,
    serialization: "advanced",
    stdio: ["ignore", "ignore", "inherit", "ipc"],
  });
}
