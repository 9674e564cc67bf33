// An export's bytes from the host of its rank: asked for in parts over Redis, a few at a time, so that a reader that takes its time
// fills no memory. A part that does not arrive is asked for again, of whichever incarnation the rank then has.

import { setTimeout as delay } from "node:timers/promises";
import type { Redis } from "ioredis";
import { LayercastError } from "../contract/errors.js";
import {
  decodePartAnswer,
  EXPORT_CHANNELS,
  PART_BYTES,
  type PartAnswer,
  type PartRequest,
  rankOfExport,
} from "../contract/exports.js";

export interface ExportReader {
  /** Throws `not_found` when the export is gone, `rank_lost` when its rank does not answer. */
  sizeBytes(fleet: string, id: string): Promise<number>;
  /** The bytes from `from` up to `to`; throws the same, and `backpressure` when too many are read already. */
  read(fleet: string, id: string, from: number, to: number, signal: AbortSignal): AsyncGenerator<Buffer>;
  /** Also of one that is gone already. Throws `rank_lost`. */
  remove(fleet: string, id: string): Promise<void>;
}

export interface ExportReaderOptions {
  redis: Pick<Redis, "publish">;
  /** A connection of its own, made when first needed. */
  connect: () => Pick<Redis, "on" | "subscribe">;
  /** Of this process, among all orchestrators. */
  name: string;
  answerWithinMs?: number;
  giveUpAfterMs?: number;
}

const PARTS_IN_FLIGHT = 4;
const MOST_READERS = 4;
/** Of one part, until it is asked for again. */
const ANSWER_WITHIN_MS = 3_000;
/** Without any answer. A worker that was restarted answers sooner. */
const GIVE_UP_AFTER_MS = 30_000;
const ASK_AGAIN_MS = 200;

export function openExportReader(options: ExportReaderOptions): ExportReader {
  const ask = untilAnswered(openPartAnswers(options), options.giveUpAfterMs ?? GIVE_UP_AFTER_MS);
  let readers = 0;
  return {
    sizeBytes: async (fleet, id) => (await ask({ fleet, id, kind: "read", offset: 0, bytes: 0 })).sizeBytes,
    async *read(fleet, id, from, to, signal) {
      if (readers >= MOST_READERS) throw tooManyReaders();
      readers += 1;
      try {
        yield* readParts(ask, { fleet, id, from, to }, signal);
      } finally {
        readers -= 1;
      }
    },
    async remove(fleet, id) {
      await ask({ fleet, id, kind: "remove", offset: 0, bytes: 0 });
    },
  };
}

/** What is asked of the rank that has an export. */
type Question = Pick<PartRequest, "id" | "kind" | "offset" | "bytes"> & { fleet: string };

/** Null when nobody answers in time. */
type AskOnce = (channel: string, question: Question) => Promise<PartAnswer | null>;

/** Throws what its reader is to be told. */
type Ask = (question: Question, signal?: AbortSignal) => Promise<PartAnswer>;

/** Questions and answers find each other by their number. */
function openPartAnswers({ redis, connect, name, answerWithinMs = ANSWER_WITHIN_MS }: ExportReaderOptions): AskOnce {
  const waiting = new Map<number, (answer: PartAnswer) => void>();
  const listen = openListening(connect, EXPORT_CHANNELS.answered(name), (answer) =>
    waiting.get(answer.number)?.(answer),
  );
  let asked = 0;
  return async (channel, { id, kind, offset, bytes }) => {
    await listen();
    const number = asked++;
    const late = new AbortController();
    const answered = new Promise<PartAnswer>((resolve) => waiting.set(number, resolve));
    try {
      const request: PartRequest = { id, kind, offset, bytes, orchestrator: name, number };
      if ((await redis.publish(channel, JSON.stringify(request))) === 0) return null;
      const inTime = delay(answerWithinMs, null, { signal: late.signal }).catch(() => null);
      return await Promise.race([answered, inTime]);
    } finally {
      waiting.delete(number);
      late.abort();
    }
  };
}

/** What it returns resolves once the channel is subscribed to: by the first call, or by the next where that one failed. */
function openListening(
  connect: ExportReaderOptions["connect"],
  channel: string,
  onAnswer: (answer: PartAnswer) => void,
): () => Promise<void> {
  let subscriber: ReturnType<ExportReaderOptions["connect"]> | null = null;
  let listening: Promise<unknown> | null = null;
  const connectOnce = () => {
    const connection = connect();
    connection.on("messageBuffer", (_channel: Buffer, message: Buffer) => {
      const answer = decodePartAnswer(message);
      if (answer !== null) onAnswer(answer);
    });
    return connection;
  };
  return async () => {
    subscriber ??= connectOnce();
    listening ??= subscriber.subscribe(channel).catch((error: unknown) => {
      listening = null;
      throw error;
    });
    await listening;
  };
}

/** Asks again until the rank answers, which may be another incarnation of it meanwhile. */
function untilAnswered(askOnce: AskOnce, giveUpAfterMs: number): Ask {
  return async (question, signal) => {
    const { fleet, id } = question;
    const rank = rankOfExport(id);
    if (rank === null) throw gone(fleet, id);
    const startedAt = performance.now();
    while (true) {
      const answer = await askOnce(EXPORT_CHANNELS.asked(fleet, rank), question);
      if (answer?.result === "ok") return answer;
      // Whoever removes it again, because the first answer was lost, has what was asked for.
      if (answer?.result === "gone" && question.kind === "remove") return answer;
      if (answer?.result === "gone") throw gone(fleet, id);
      if (answer?.result === "failed") throw unreadable(fleet, rank, id, answer.message);
      signal?.throwIfAborted();
      if (performance.now() - startedAt > giveUpAfterMs) throw silent(fleet, rank, id, giveUpAfterMs);
      await delay(ASK_AGAIN_MS);
    }
  };
}

interface ByteRange {
  fleet: string;
  id: string;
  from: number;
  to: number;
}

/** The range's parts in order, a few of them asked for ahead of the reader. */
async function* readParts(ask: Ask, { fleet, id, from, to }: ByteRange, signal: AbortSignal): AsyncGenerator<Buffer> {
  const parts: { bytes: number; answer: Promise<PartAnswer> }[] = [];
  let next = from;
  const askAhead = () => {
    for (; parts.length < PARTS_IN_FLIGHT && next < to; next += PART_BYTES) {
      const bytes = Math.min(PART_BYTES, to - next);
      const answer = ask({ fleet, id, kind: "read", offset: next, bytes }, signal);
      answer.catch(() => undefined); // one that nobody waits for any more
      parts.push({ bytes, answer });
    }
    return parts.shift();
  };
  for (let part = askAhead(); part !== undefined; part = askAhead()) {
    const { content } = await part.answer;
    signal.throwIfAborted();
    if (content.length !== part.bytes) throw cutShort(fleet, id);
    yield content;
  }
}

function tooManyReaders(): LayercastError {
  const sentence = `${MOST_READERS} exports are being read already: try again later.`;
  return new LayercastError("backpressure", sentence, { retry_after_s: 5 });
}

function cutShort(fleet: string, id: string): LayercastError {
  return new LayercastError("io_error", `Export ${id} was cut short. Export the rank again.`, { fleet });
}

function unreadable(fleet: string, rank: string, id: string, message: string): LayercastError {
  return new LayercastError("io_error", `Rank ${rank} cannot read export ${id}: ${message}.`, { fleet, rank });
}

function silent(fleet: string, rank: string, id: string, forMs: number): LayercastError {
  return new LayercastError(
    "rank_lost",
    `Rank ${rank} of fleet ${fleet} has not answered for ${forMs} ms: read export ${id} again once it is back.`,
    { fleet, rank },
  );
}

function gone(fleet: string, id: string): LayercastError {
  return new LayercastError(
    "not_found",
    `Fleet ${fleet} has no export ${id}: exports are removed an hour after they were last read. Export the rank again.`,
    { fleet, export_id: id },
  );
}
