// A reload's events as server-sent events: what came after Last-Event-ID, then what comes, until the terminal state's
// event. Each frame is `id`, `event`, `data` (JSON); a comment is sent in silence so that proxies keep the connection.

import { Readable } from "node:stream";
import { Type } from "typebox";
import { LayercastError, reportError } from "../contract/errors.js";
import { TERMINAL_STATES } from "../contract/reload.js";
import { explainTrouble, redisTrouble } from "../host/redis-trouble.js";
import type { ReloadEvent } from "../reloads/reloads.js";
import type { App, RouteDeps } from "./app.js";
import { requestSignal, settleOrNull } from "./lifetime.js";
import { problems, ReloadParams, textAnswer } from "./schemas.js";

/** What a browser waits before it connects again. */
const RECONNECT_MS = 1000;

const schema = {
  operationId: "streamReloadEvents",
  tags: ["reloads"],
  summary: "Follow a reload by server-sent events",
  description:
    "Events `state`, `progress`, `retry`, `warning`, `bucket`; replayed from the start, or after `Last-Event-ID`. The stream ends after " +
    "the terminal state. 204: the reload has ended and there is nothing after `Last-Event-ID`, so do not connect again. " +
    "An event `problem` tells why a stream ends early; connect again with the last id.",
  params: ReloadParams,
  headers: Type.Object({
    "last-event-id": Type.Optional(Type.String({ description: "Id of the last event received" })),
  }),
  response: {
    200: textAnswer("text/event-stream", "The events"),
    204: { type: "null", description: "Ended, and nothing more to replay" },
    ...problems("invalid_request", "not_found"),
  },
};

export function addEventRoutes(app: App, deps: RouteDeps): void {
  app.get("/v1/reloads/:id/events", { schema }, async (request, reply) => {
    const afterId = parseLastEventId(request.headers["last-event-id"]);
    const signal = requestSignal(reply, deps.closing);
    // An unknown reload must be a 404, which it can no longer be once the stream has begun.
    const state = await deps.reloads.state(request.params.id);
    const events = deps.reloads.events(request.params.id, afterId, signal)[Symbol.asyncIterator]();
    const first = events.next();
    if (TERMINAL_STATES.includes(state) && (await settleOrNull(first, signal, null))?.done) {
      return reply.code(204).send(null);
    }
    return reply
      .type("text/event-stream; charset=utf-8")
      .header("cache-control", "no-cache, no-transform")
      .header("x-accel-buffering", "no")
      .header("connection", "close")
      .send(Readable.from(frames(events, first, signal, deps.heartbeatMs), { objectMode: false }));
  });
}

type Next = Promise<IteratorResult<ReloadEvent>>;

async function* frames(
  events: AsyncIterator<ReloadEvent>,
  first: Next,
  signal: AbortSignal,
  heartbeatMs: number,
): AsyncGenerator<string> {
  try {
    yield `retry: ${RECONNECT_MS}\n\n`;
    let next = first;
    while (!signal.aborted) {
      const got = await settleOrNull(next, signal, heartbeatMs);
      if (got?.done) return;
      if (got === null) {
        if (signal.aborted) return;
        yield ": heartbeat\n\n";
        continue;
      }
      yield frame(got.value);
      next = events.next();
    }
  } catch (error) {
    yield problemFrame(error);
  } finally {
    // Not awaited: an iterator that still waits must not keep the connection open.
    Promise.resolve(events.return?.()).catch(() => undefined);
  }
}

/** Of events that many streams send. */
const framed = new WeakMap<ReloadEvent, string>();

function frame(event: ReloadEvent): string {
  const known = framed.get(event);
  if (known !== undefined) return known;
  const text = `id: ${event.id}\nevent: ${event.name}\ndata: ${JSON.stringify(event.payload)}\n\n`;
  framed.set(event, text);
  return text;
}

/** No `id`, so that whoever connects again continues after the last real event. */
function problemFrame(error: unknown): string {
  const trouble = redisTrouble(error);
  const shown =
    trouble !== null
      ? new LayercastError("redis_unavailable", `${explainTrouble(trouble)} Then connect again, with Last-Event-ID.`)
      : error instanceof LayercastError
        ? error
        : new LayercastError("internal", "the event stream failed: connect again, with Last-Event-ID");
  return `event: problem\ndata: ${JSON.stringify(reportError(shown))}\n\n`;
}

/** Ids are Redis stream ids: two 64-bit numbers. */
function parseLastEventId(header: string | undefined): string | null {
  if (header === undefined || header === "") return null;
  const numbers = /^(\d{1,20})-(\d{1,20})$/.exec(header)?.slice(1) ?? [];
  if (numbers.length === 2 && numbers.every((number) => BigInt(number) < 2n ** 64n)) return header;
  throw new LayercastError(
    "invalid_request",
    `Last-Event-ID is '${header.slice(0, 80)}', but an event's id looks like 1700000000000-0: send the last id received, or none`,
    { in: "headers", errors: [{ path: "last-event-id", message: "must be the id of an event of this reload" }] },
  );
}
