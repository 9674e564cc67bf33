// A push session in Redis: which buckets were accepted, where their bytes are, which ranks have taken them. Its steps are scripts
// (session-scripts.ts), so any number of orchestrators and ranks may take them at once.

import type { Redis } from "ioredis";
import { DTYPES, type SourceDType } from "../contract/dtype.js";
import { LayercastError } from "../contract/errors.js";
import { CHANNELS, KEYS, type RankKey, TICKS_KEPT } from "../contract/jobs.js";
import type { CheckpointFile } from "../contract/plan.js";
import type { Bucket, BucketPiece, BucketState, Retain } from "../contract/push.js";
import { joinRows, NO_ROWS, type RowRanges } from "../program/row-ranges.js";
import { ACCEPT, FINISH, LOST, OPEN, PASSED, SPOOLED, TAKEN, TOUCH, WANT } from "./session-scripts.js";

/** One life of a rank. */
export interface Taker {
  rank: RankKey;
  incarnation: string;
}

/** A bucket that has come, before it has a place in the session. */
export interface NewBucket {
  /** The trainer's; null: the next. */
  number: number | null;
  /** Of what it holds; another delivery of the same has the same. */
  contentKey: string;
  pieces: BucketPiece[];
  bytes: number;
  tensors: number;
  file: CheckpointFile;
  /** Nobody writes to the file again. */
  immutable: boolean;
  /** The file is the spool's; with `retain: trainer` until it is consumed. */
  spooled: boolean;
}

/** `known`, `number_taken`, `other_number`, `overlap` and `other_dtype` name the bucket that was there before. */
export type Accepted =
  | { kind: "accepted" | "again" | "known" | "number_taken" | "other_number"; sequence: number }
  | { kind: "overlap" | "other_dtype"; tensor: number; sequence: number }
  | { kind: "finished" }
  | { kind: "full" };

/** A bucket with what only orchestrators ask for. */
export interface SessionBucket extends Bucket {
  state: BucketState;
  /** Its bytes are kept until the end. */
  spooled: boolean;
  /** A link to the file will do. */
  immutable: boolean;
  /** Tensors, or parts of them, those that no kernel tensor needs included. */
  tensors: number;
}

export interface Summary {
  retain: Retain;
  accepted: number;
  consumed: number;
  finished: boolean;
  /** Of deliveries; the end of the log. */
  log: number;
  /** Sequences. */
  wanted: number[];
  unspooled: number[];
  /** Their files are the spool's until they are consumed. */
  passing: number[];
  touchedAt: number;
  /** By Redis's clock. */
  now: number;
}

/** What ranks ask of a session. */
export interface PushSessions {
  /** Buckets accepted so far; 0 for an unknown session. */
  count(reload: string): Promise<number>;
  /** Throws `source_gone` when the session is no longer kept. */
  bucket(reload: string, sequence: number): Promise<SessionBucket>;
  /** `by` has what it needs of the bucket, which is consumed once all of `expected` do. null: nobody new has. */
  taken(reload: string, sequence: number, by: Taker | null, expected: readonly Taker[]): Promise<void>;
}

/** And what orchestrators do. */
export interface PushSessionStore extends PushSessions {
  open(reload: string, retain: Retain): Promise<void>;
  /** The trainer is there. */
  touch(reload: string): Promise<void>;
  accept(reload: string, bucket: NewBucket, maxPending: number): Promise<Accepted>;
  /** null: there is none of that number. */
  byNumber(reload: string, number: number): Promise<SessionBucket | null>;
  /** Its bytes are in the spool now; false when they were already, in another file, or another delivery has come since. */
  spooled(reload: string, bucket: Pick<Bucket, "sequence" | "delivery">, file: CheckpointFile): Promise<boolean>;
  /** Its file in the spool has been given up. */
  passed(reload: string, bucket: Pick<Bucket, "sequence" | "delivery">): Promise<void>;
  /** What is consumed and kept by nobody, and one of them has not taken. */
  lost(reload: string, takers: readonly Taker[]): Promise<number[]>;
  /** consumed -> wanted; false when it is not, or its bytes are kept. */
  want(reload: string, sequence: number): Promise<boolean>;
  /** Who has taken the bucket, by rank: the incarnation. */
  takers(reload: string, sequence: number, ranks: readonly RankKey[]): Promise<(string | null)[]>;
  /** null: there is no session. */
  summary(reload: string): Promise<Summary | null>;
  /** By index of the checkpoint tensor: rows that have been accepted. */
  rows(reload: string): Promise<Map<number, RowRanges>>;
  /** False when something was accepted since `count` was read. */
  finish(reload: string, count: number): Promise<boolean>;
  /** Deliveries [from, to) of the log that can be read: of each bucket the last. */
  deliveries(reload: string, from: number, to: number): Promise<{ sequence: number; delivery: number }[]>;
  /** How far along the log a rank's incarnation was sent jobs. */
  sentTo(reload: string, taker: Taker): Promise<number>;
  noteSent(reload: string, taker: Taker, log: number): Promise<void>;
}

interface Commands extends Redis {
  layercastAccept(session: string, rows: string, ...args: string[]): Promise<[string, string, string?]>;
  layercastTaken(session: string, taken: string, events: string, ticks: string, ...args: string[]): Promise<number>;
  layercastSpooled(session: string, ...args: string[]): Promise<number>;
  layercastPassed(session: string, ...args: string[]): Promise<number>;
  layercastLost(session: string, taken: string, takers: string): Promise<number[]>;
  layercastWant(session: string, events: string, ticks: string, ...args: string[]): Promise<number>;
  layercastFinish(session: string, count: string): Promise<number>;
  layercastOpenSession(session: string, retain: string): Promise<number>;
  layercastTouch(session: string): Promise<number>;
}

function withScripts(redis: Redis): Commands {
  redis.defineCommand("layercastAccept", { numberOfKeys: 2, lua: ACCEPT });
  redis.defineCommand("layercastTaken", { numberOfKeys: 4, lua: TAKEN });
  redis.defineCommand("layercastSpooled", { numberOfKeys: 1, lua: SPOOLED });
  redis.defineCommand("layercastPassed", { numberOfKeys: 1, lua: PASSED });
  redis.defineCommand("layercastLost", { numberOfKeys: 2, lua: LOST });
  redis.defineCommand("layercastWant", { numberOfKeys: 3, lua: WANT });
  redis.defineCommand("layercastFinish", { numberOfKeys: 1, lua: FINISH });
  redis.defineCommand("layercastOpenSession", { numberOfKeys: 1, lua: OPEN });
  redis.defineCommand("layercastTouch", { numberOfKeys: 1, lua: TOUCH });
  return redis as Commands;
}

export function openPushSessions(redis: Redis): PushSessionStore {
  const commands = withScripts(redis);

  async function bucket(reload: string, sequence: number): Promise<SessionBucket> {
    const fields = BUCKET_FIELDS.map((field) => `${field}:${sequence}`);
    const found = await redis.hmget(KEYS.session(reload), ...fields);
    const [held, file, spooled, delivery, state] = found;
    if (!held || !file || !state) throw sessionGone(reload);
    return decodeBucket(sequence, { held, file, spooled: spooled === "1", delivery: Number(delivery), state });
  }

  return {
    bucket,
    count: async (reload) => Number((await redis.hget(KEYS.session(reload), "count")) ?? 0),
    async taken(reload, sequence, by, expected) {
      const keys = [KEYS.session(reload), KEYS.sessionTaken(reload), ...eventKeys(reload)] as const;
      const who = [by?.rank ?? "", by?.incarnation ?? ""];
      const told = [reload, CHANNELS.reload, String(TICKS_KEPT)];
      const done = await commands.layercastTaken(...keys, String(sequence), ...who, encodeTakers(expected), ...told);
      if (done === -1) throw sessionGone(reload);
    },
    async open(reload, retain) {
      await commands.layercastOpenSession(KEYS.session(reload), retain);
    },
    async touch(reload) {
      await commands.layercastTouch(KEYS.session(reload));
    },
    async accept(reload, { number, contentKey, file, spooled, ...held }, maxPending) {
      const ranges = held.pieces
        .map(({ tensor, firstRow, rows, dtype }) => `${tensor},${firstRow},${firstRow + rows},${codeOf(dtype)}`)
        .join(";");
      const [kind, at, by] = await commands.layercastAccept(
        KEYS.session(reload),
        KEYS.sessionRows(reload),
        ...[number === null ? "" : String(number), contentKey, JSON.stringify(held)],
        ...[ranges, JSON.stringify(file), spooled ? "1" : "0", String(maxPending)],
      );
      if (kind === "overlap" || kind === "other_dtype") return { kind, tensor: Number(at), sequence: Number(by) };
      if (kind === "finished" || kind === "full") return { kind };
      return { kind: kind as "accepted", sequence: Number(at) };
    },
    async byNumber(reload, number) {
      const sequence = await redis.hget(KEYS.session(reload), `number:${number}`);
      return sequence === null ? null : bucket(reload, Number(sequence));
    },
    async spooled(reload, { sequence, delivery }, file) {
      const which = [String(sequence), String(delivery)];
      return (await commands.layercastSpooled(KEYS.session(reload), ...which, JSON.stringify(file))) === 1;
    },
    async passed(reload, { sequence, delivery }) {
      await commands.layercastPassed(KEYS.session(reload), String(sequence), String(delivery));
    },
    lost: (reload, takers) =>
      commands.layercastLost(KEYS.session(reload), KEYS.sessionTaken(reload), encodeTakers(takers)),
    async want(reload, sequence) {
      const told = [reload, CHANNELS.reload, String(TICKS_KEPT)];
      return (
        (await commands.layercastWant(KEYS.session(reload), ...eventKeys(reload), String(sequence), ...told)) === 1
      );
    },
    takers: (reload, sequence, ranks) =>
      ranks.length === 0
        ? Promise.resolve([])
        : redis.hmget(KEYS.sessionTaken(reload), ...ranks.map((rank) => `${sequence}/${rank}`)),
    async summary(reload) {
      const [found, [seconds, micros]] = await Promise.all([
        redis.hmget(KEYS.session(reload), ...SUMMARY_FIELDS),
        redis.time(),
      ]);
      return decodeSummary(found, Number(seconds) * 1000 + Math.floor(Number(micros) / 1000));
    },
    async rows(reload) {
      const found = Object.entries(await redis.hgetall(KEYS.sessionRows(reload)));
      return new Map(found.map(([tensor, ranges]) => [Number(tensor), decodeRanges(ranges)]));
    },
    finish: async (reload, count) => (await commands.layercastFinish(KEYS.session(reload), String(count))) === 1,
    async deliveries(reload, from, to) {
      if (from >= to) return [];
      const fields = Array.from({ length: to - from }, (_, index) => `log:${from + index}`);
      const logged = await redis.hmget(KEYS.session(reload), ...fields);
      const last = new Map(logged.map((entry) => (entry ?? "0|0").split("|").map(Number) as [number, number]));
      const sequences = [...last.keys()];
      const about = sequences.flatMap((sequence) => [`state:${sequence}`, `spooled:${sequence}`]);
      const found = await redis.hmget(KEYS.session(reload), ...about);
      const readable = sequences.filter((_, at) => found[2 * at] === "pending" || found[2 * at + 1] === "1");
      return readable.map((sequence) => ({ sequence, delivery: last.get(sequence) ?? 0 }));
    },
    async sentTo(reload, { rank, incarnation }) {
      const [to, log] = ((await redis.hget(KEYS.session(reload), `sent:${rank}`)) ?? "").split("|");
      return to === incarnation ? Number(log) : 0;
    },
    async noteSent(reload, { rank, incarnation }, log) {
      await redis.hset(KEYS.session(reload), `sent:${rank}`, `${incarnation}|${log}`);
    },
  };
}

function encodeTakers(takers: readonly Taker[]): string {
  return takers.map(({ rank, incarnation }) => `${rank}=${incarnation}`).join(",");
}

const BUCKET_FIELDS = ["bucket", "file", "spooled", "delivery", "state"];
const SUMMARY_FIELDS = ["retain", "count", "consumed", "finished", "log", "wanted", "unspooled", "passing", "touched"];

function decodeBucket(
  sequence: number,
  stored: { held: string; file: string; spooled: boolean; delivery: number; state: string },
): SessionBucket {
  const held = JSON.parse(stored.held) as Pick<SessionBucket, "number" | "pieces" | "bytes" | "tensors" | "immutable">;
  const state = stored.state as BucketState;
  const { spooled, delivery } = stored;
  const file = JSON.parse(stored.file) as CheckpointFile;
  return { sequence, ...held, file, spooled, delivery, state, isReadable: spooled || state === "pending" };
}

function decodeSummary(found: readonly (string | null)[], now: number): Summary | null {
  const [retain, count, consumed, finished, log, wanted, unspooled, passing, touched] = found;
  if (retain === null || retain === undefined) return null;
  const sequences = (list: string | null | undefined) => (list ? list.split(",").map(Number) : []);
  return {
    retain: retain as Retain,
    accepted: Number(count ?? 0),
    consumed: Number(consumed ?? 0),
    finished: finished === "1",
    log: Number(log ?? 0),
    wanted: sequences(wanted),
    unspooled: sequences(unspooled),
    passing: sequences(passing),
    touchedAt: Number(touched ?? now),
    now,
  };
}

/** 0: that of the plan. */
function codeOf(dtype: SourceDType | undefined): number {
  return dtype === undefined ? 0 : 1 + DTYPES[dtype].code;
}

/** "from,to,seq,dtype;..." */
function decodeRanges(text: string): RowRanges {
  return text
    .split(";")
    .filter((range) => range !== "")
    .map((range) => range.split(",").map(Number))
    .reduce<RowRanges>((rows, [from = 0, to = 0]) => joinRows(rows, [{ from, to }]), NO_ROWS);
}

export function sessionGone(reload: string): LayercastError {
  return new LayercastError(
    "source_gone",
    `the buckets of reload ${reload} are no longer kept; push its weights again`,
    { reload },
  );
}

const eventKeys = (reload: string) => [KEYS.events(reload), KEYS.ticks(reload)] as const;
