// What a child process writes -> lines for whoever watches: on a terminal the name, the time and the words of a pino line;
// elsewhere the line as it came, so that the output stays JSON lines.

import type { ChildProcess } from "node:child_process";
import { createInterface } from "node:readline";

export function onLines(child: ChildProcess, line: (text: string) => void): void {
  for (const stream of [child.stdout, child.stderr]) {
    if (stream !== null) createInterface({ input: stream, crlfDelay: Number.POSITIVE_INFINITY }).on("line", line);
  }
}

const LEVELS: Record<number, string> = { 10: "trace", 20: "debug", 30: "info", 40: "warn", 50: "error", 60: "fatal" };
/** Fields that stand elsewhere in the line or say what the prefix says. */
const HIDDEN_FIELDS = new Set(["level", "time", "msg", "name", "pid", "hostname", "v"]);

/** `{"level":40,"time":"…T10:00:00.000Z","msg":"retry","rank":1}` -> `10:00:00 worker 0/1    warn  retry  rank=1`. */
export function humanLine(source: string, text: string, width: number): string {
  const prefix = source.padEnd(width);
  const entry = parseEntry(text);
  if (entry === null) return `${" ".repeat(8)} ${prefix}  ${text}`;
  const fields = Object.entries(entry)
    .filter(([key]) => !HIDDEN_FIELDS.has(key))
    .map(([key, value]) => `${key}=${describe(value)}`);
  const level = LEVELS[Number(entry.level)] ?? String(entry.level ?? "");
  const words = [String(entry.msg ?? ""), ...fields].filter((word) => word !== "");
  return `${clock(entry.time)} ${prefix}  ${level.padEnd(5)} ${words.join("  ")}`;
}

function parseEntry(text: string): Record<string, unknown> | null {
  if (!text.startsWith("{")) return null;
  try {
    return JSON.parse(text) as Record<string, unknown>;
  } catch {
    return null;
  }
}

function clock(time: unknown): string {
  const date = new Date(typeof time === "number" || typeof time === "string" ? time : Number.NaN);
  return Number.isNaN(date.getTime()) ? " ".repeat(8) : date.toISOString().slice(11, 19);
}

function describe(value: unknown): string {
  if (typeof value === "string") return /\s/.test(value) ? JSON.stringify(value) : value;
  const message = isErrorEntry(value) ? value.message : null;
  return message ?? JSON.stringify(value) ?? "undefined";
}

function isErrorEntry(value: unknown): value is { message: string } {
  return typeof value === "object" && value !== null && typeof (value as { message?: unknown }).message === "string";
}
