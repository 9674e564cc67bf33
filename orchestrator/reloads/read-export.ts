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
  const { redis, name, answerWithinMs = ANSWER_WITHIN_MS, giveUpAfterMs = GIVE_UP_AFTER_MS } = options;
  const waiting = new Map<number, (answer: PartAnswer) => void>();
  let listening: Promise<unknown> | null = null;
  let asked = 0;
  let readers = 0;

  async function listen(): Promise<void> {
    listening ??= subscribe().catch((error: unknown) => {
      listening = null;
      throw error;
    });
    await listening;
  }

  async function subscribe(): Promise<void> {
    const subscriber = options.connect();
    subscriber.on("messageBuffer", (_channel: Buffer, message: Buffer) => {
      const answer = decodePartAnswer(message);
      if (answer !== null) waiting.get(answer.number)?.(answer);
    });
    await subscriber.subscribe(EXPORT_CHANNELS.answered(name));
  }

  /** Null when nobody answers in time. */
  async function askOnce(
    channel: string,
    what: Omit<PartRequest, "number" | "orchestrator">,
  ): Promise<PartAnswer | null> {
    const number = asked++;
    const late = new AbortController();
    const answered = new Promise<PartAnswer>((resolve) => waiting.set(number, resolve));
    try {
      const request: PartRequest = { ...what, orchestrator: name, number };
      if ((await redis.publish(channel, JSON.stringify(request))) === 0) return null;
      const inTime = delay(answerWithinMs, null, { signal: late.signal }).catch(() => null);
      return await Promise.race([answered, inTime]);
    } finally {
      waiting.delete(number);
      late.abort();
    }
  }

  async function ask(
    fleet: string,
    id: string,
    what: Pick<PartRequest, "kind" | "offset" | "bytes">,
    signal?: AbortSignal,
  ) {
    const rank = rankOfExport(id);
    if (rank === null) throw gone(fleet, id);
    await listen();
    const startedAt = performance.now();
    while (true) {
      const answer = await askOnce(EXPORT_CHANNELS.asked(fleet, rank), { id, ...what });
      if (answer?.result === "ok") return answer;
      if (answer?.result === "gone") throw gone(fleet, id);
      if (answer?.result === "failed") {
        throw new LayercastError("io_error", `Rank ${rank} cannot read export ${id}: ${answer.message}.`, {
          fleet,
          rank,
        });
      }
      signal?.throwIfAborted();
      if (performance.now() - startedAt > giveUpAfterMs) {
        throw new LayercastError(
          "rank_lost",
          `Rank ${rank} of fleet ${fleet} has not answered for ${giveUpAfterMs} ms: read export ${id} again once it is back.`,
          { fleet, rank },
        );
      }
      await delay(ASK_AGAIN_MS);
    }
  }

  async function* read(fleet: string, id: string, from: number, to: number, signal: AbortSignal) {
    if (readers >= MOST_READERS) {
      throw new LayercastError("backpressure", `${MOST_READERS} exports are being read already: try again later.`, {
        retry_after_s: 5,
      });
    }
    readers += 1;
    const parts: Promise<PartAnswer>[] = [];
    let next = from;
    try {
      for (let at = from; at < to; ) {
        for (; parts.length < PARTS_IN_FLIGHT && next < to; next += PART_BYTES) {
          const bytes = Math.min(PART_BYTES, to - next);
          const part = ask(fleet, id, { kind: "read", offset: next, bytes }, signal);
          part.catch(() => undefined); // one that nobody waits for any more
          parts.push(part);
        }
        const wanted = Math.min(PART_BYTES, to - at);
        const { content } = await (parts.shift() as Promise<PartAnswer>);
        signal.throwIfAborted();
        if (content.length !== wanted) throw new LayercastError("io_error", `Export ${id} was cut short.`, { fleet });
        at += content.length;
        yield content;
      }
    } finally {
      readers -= 1;
    }
  }

  return {
    sizeBytes: async (fleet, id) => (await ask(fleet, id, { kind: "read", offset: 0, bytes: 0 })).sizeBytes,
    read,
    async remove(fleet, id) {
      await ask(fleet, id, { kind: "remove", offset: 0, bytes: 0 });
    },
  };
}

function gone(fleet: string, id: string): LayercastError {
  return new LayercastError(
    "not_found",
    `Fleet ${fleet} has no export ${id}: exports are removed an hour after they were last read. Export the rank again.`,
    { fleet, export_id: id },
  );
}
