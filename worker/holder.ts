// Device memory that outlives its worker: a process that does nothing else holds it, so that a worker's death moves no address
// under an engine's graphs. Which process holds what is written beside the arena's header, for the worker's next life.

import { type ChildProcess, spawn } from "node:child_process";
import { readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import type { NativeCore } from "../native/native.js";
import { countOf } from "../orchestrator/contract/count-of.js";
import { LayercastError } from "../orchestrator/contract/errors.js";
import { ownIdentity, type ProcessIdentity, startOf } from "./process-identity.js";

export interface HeldMemory {
  /** 128 hex digits; by it every process of this host maps the memory. */
  ipcHandle: string;
  /** Ends the holder, and with it the memory. */
  release(): void;
}

/** Keeps the memory of arenas by the path of their header. */
export interface Holders {
  /** Throws `out_of_memory` with the numbers. */
  hold(path: string, bytes: number): Promise<HeldMemory>;
  /** What this worker or the one before had held for that path, if it is there still. */
  find(path: string): HeldMemory | null;
  /** The arena goes by another name from now on. */
  rename(from: string, to: string): void;
}

export interface HoldersOptions {
  core: NativeCore;
  ordinal: number;
  /** A file that workers of this rank lock for life: with none of them left, holders end after `graceMs`. */
  alivePath: string;
  graceMs: number;
}

/** One line of a record: who holds the memory, and by which handle. */
interface HolderRecord {
  pid: number;
  startedAt: string;
  /** Where that number and time are from. A record of an earlier version does not say. */
  boot?: string;
  pidNamespace?: string;
  ipcHandle: string;
}

const OUT_OF_MEMORY_CODE = 3;
/** A context is made, and gigabytes are taken. */
const HOLD_WITHIN_MS = 60_000;

export function openHolders(options: HoldersOptions): Holders {
  return {
    async hold(path, bytes) {
      const child = start(options, bytes);
      const pid = child.pid ?? 0;
      // Before it holds anything: should this worker die meanwhile, the next one finds whom to end.
      const unfinished = { ...countedBy(ownIdentity()), pid, startedAt: startOf(pid) ?? "", ipcHandle: "" };
      writeRecord(path, unfinished);
      try {
        const record = { ...unfinished, ipcHandle: await firstLine(child, bytes) };
        writeRecord(path, record);
        child.unref();
        return heldBy(record, path);
      } catch (error) {
        heldBy(unfinished, path).release();
        throw error;
      }
    },
    find(path) {
      const record = readRecord(path);
      if (record === null) return null;
      if (isThere(record)) return heldBy(record, path);
      rmSync(recordPath(path), { force: true });
      return null;
    },
    rename: (from, to) => renameSync(recordPath(from), recordPath(to)),
  };
}

function recordPath(path: string): string {
  return `${path}.holder`;
}

function start({ core, ordinal, alivePath, graceMs }: HoldersOptions, bytes: number): ChildProcess {
  const args = ["--library", core.cudaLibraryPath, "--device", String(ordinal), "--bytes", String(bytes)];
  const life = ["--alive", alivePath, "--grace-ms", String(graceMs)];
  // Not in this process's group, and nothing that ends with it: it must live on.
  return spawn(core.holderPath, [...args, ...life], { detached: true, stdio: ["ignore", "pipe", "pipe"] });
}

/** The handle, once the memory is there. */
async function firstLine(child: ChildProcess, bytes: number): Promise<string> {
  let [out, err] = ["", ""];
  child.stdout?.setEncoding("utf8").on("data", (text: string) => {
    out += text;
  });
  child.stderr?.setEncoding("utf8").on("data", (text: string) => {
    err += text;
  });
  const ended = new Promise<number | null>((resolve) => {
    child.once("close", resolve);
    child.once("error", (error) => {
      err += error.message;
      resolve(null);
    });
  });
  const late = delay(HOLD_WITHIN_MS, "late" as const, { ref: false });
  const line = new Promise<"line">((resolve) => {
    child.stdout?.on("data", () => out.includes("\n") && resolve("line"));
  });
  const first = await Promise.race([line, ended, late]);
  if (first === "line" || out.includes("\n")) return out.slice(0, out.indexOf("\n"));
  if (first === "late") child.kill("SIGKILL");
  const why = err.trim() || (first === "late" ? `it did not answer within ${HOLD_WITHIN_MS} ms` : "it ended");
  throw new LayercastError(
    first === OUT_OF_MEMORY_CODE ? "out_of_memory" : "io_error",
    `the process that is to hold ${countOf(bytes, "byte")} of device memory has failed: ${why}`,
    { bytes },
  );
}

function heldBy(record: HolderRecord, path: string): HeldMemory {
  const { pid, ipcHandle } = record;
  return {
    ipcHandle,
    release() {
      const current = readRecord(path);
      if (current?.pid === pid) rmSync(recordPath(path), { force: true });
      if (isThere(record)) process.kill(pid, "SIGTERM");
    },
  };
}

function countedBy(own: ProcessIdentity | null): Pick<HolderRecord, "boot" | "pidNamespace"> {
  return own === null ? {} : { boot: own.boot, pidNamespace: own.pidNamespace };
}

/** In another PID namespace the record's number is some other process. */
function isThere({ pid, startedAt, boot, pidNamespace }: HolderRecord): boolean {
  const own = ownIdentity();
  if (boot !== undefined && own !== null && (boot !== own.boot || pidNamespace !== own.pidNamespace)) return false;
  return startOf(pid) === startedAt;
}

function writeRecord(path: string, record: HolderRecord): void {
  writeFileSync(recordPath(path), `${JSON.stringify(record)}\n`);
}

function readRecord(path: string): HolderRecord | null {
  try {
    return JSON.parse(readFileSync(recordPath(path), "utf8")) as HolderRecord;
  } catch {
    return null; // there is none, or a worker died while writing it: its holder ends with the last worker
  }
}
