// What an attached engine and its ranks' workers say to each other over `engines.sock`: a JSON object a line. Checked here, once;
// fields that nobody knows are ignored, so that either side may be newer.

import { type Static, type TSchema, Type } from "typebox";
import { Check } from "typebox/value";
import type { ErrorCode } from "../../orchestrator/contract/errors.js";
import { nullable, oneOf } from "../../orchestrator/contract/schema.js";

/** The version of these messages; an engine's hello begins with it. */
export const LINK_VERSION = 1;
/** A line that is longer is no message. */
export const MAX_LINE_BYTES = 64 * 1024;

/** It is logged and shown on terminals. */
const Plain = (maxLength: number) => Type.String({ minLength: 1, maxLength, pattern: "^[^\\u0000-\\u001f\\u007f]*$" });
const Whole = (minimum: number) => Type.Integer({ minimum, maximum: Number.MAX_SAFE_INTEGER });
const Milliseconds = Type.Number({ minimum: 0 });

const Hello = Type.Object({
  hello: Whole(1),
  /** Equal in all processes of one engine, and in no others. */
  engine: Plain(200),
  /** `rank` computes with this rank's arena; `core` is the process that can make all ranks of the engine stand still. */
  role: oneOf(["rank", "core"]),
  name: Plain(100),
  version: Plain(100),
  pid: Whole(1),
  host: Plain(255),
  /** Where it serves; null: it has not been told. */
  url: nullable(Plain(2048)),
  /** Ranks of the engine. */
  world: Whole(1),
  /** Which of them; what a core says here does not matter. */
  rank: nullable(Whole(0)),
  data_parallel_rank: Whole(0),
  /** `ready`: it computes already, and has lost its link. */
  state: oneOf(["starting", "ready"]),
});
export type Hello = Static<typeof Hello>;

const Ready = Type.Object({ state: oneOf(["ready"]) });
const Stopped = Type.Object({ stopped: Whole(0) });
const Running = Type.Object({
  running: Whole(0),
  stop_ms: Milliseconds,
  still_ms: Milliseconds,
  weight_version: nullable(Type.String({ maxLength: 1024 })),
});
export type Running = Static<typeof Running>;
const Trouble = Type.Object({ trouble: nullable(Type.String({ minLength: 1, maxLength: 4096 })) });

export type EngineMessage =
  | { kind: "hello"; hello: Hello }
  | { kind: "ready" }
  | { kind: "stopped"; epoch: number }
  | { kind: "running"; running: Running }
  | { kind: "trouble"; trouble: string | null }
  /** Of a newer engine. */
  | { kind: "unknown" };

export type WorkerMessage =
  | { welcome: typeof LINK_VERSION; epoch: number; weight_version: string | null; recipe: string | null }
  | { refused: ErrorCode; message: string }
  | { stop: number; reload: string }
  | { go: number };

/** A hello has a `state` too, so it is looked for first. */
const KINDS: readonly [field: string, schema: TSchema, read: (value: never) => EngineMessage][] = [
  ["hello", Hello, (hello: Hello) => ({ kind: "hello", hello })],
  ["state", Ready, () => ({ kind: "ready" })],
  ["stopped", Stopped, ({ stopped }: Static<typeof Stopped>) => ({ kind: "stopped", epoch: stopped })],
  ["running", Running, (running: Running) => ({ kind: "running", running })],
  ["trouble", Trouble, ({ trouble }: Static<typeof Trouble>) => ({ kind: "trouble", trouble: inOneLine(trouble) })],
];

/** Null for what is no message. */
export function parseEngineMessage(line: string): EngineMessage | null {
  const value = parseObject(line);
  if (value === null) return null;
  const kind = KINDS.find(([field]) => field in value);
  if (kind === undefined) return { kind: "unknown" };
  const [, schema, read] = kind;
  return Check(schema, value) ? read(value as never) : null;
}

function parseObject(line: string): object | null {
  try {
    const value: unknown = JSON.parse(line);
    return typeof value === "object" && value !== null && !Array.isArray(value) ? value : null;
  } catch {
    return null;
  }
}

function inOneLine(text: string | null): string | null {
  return text === null ? null : text.replaceAll(/[\p{Cc}\s]+/gu, " ").trim();
}

/** Cuts a stream into lines; null once one is longer than MAX_LINE_BYTES. */
export function lineReader(): (chunk: Buffer) => string[] | null {
  let rest = Buffer.alloc(0);
  return (chunk) => {
    const parts: Buffer[] = [];
    let from = 0;
    for (let end = chunk.indexOf(10); end !== -1; end = chunk.indexOf(10, from)) {
      parts.push(chunk.subarray(from, end));
      from = end + 1;
    }
    const lines = parts.map((part, index) => (index === 0 ? Buffer.concat([rest, part]) : part));
    const last = chunk.subarray(from);
    rest = parts.length === 0 ? Buffer.concat([rest, last]) : Buffer.from(last);
    if ([...lines, rest].some(({ byteLength }) => byteLength > MAX_LINE_BYTES)) return null;
    return lines.map((line) => line.toString("utf8"));
  };
}
