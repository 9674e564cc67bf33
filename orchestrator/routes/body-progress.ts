// A request's body must make progress. A trainer whose host lost power, or a client that sends a byte now and then, would
// otherwise keep its connection, and whoever reads the body, for good. Applies to every route, and to bodies nobody reads.

import type { IncomingMessage, ServerResponse } from "node:http";
import { countOf } from "../contract/count-of.js";
import { LayercastError } from "../contract/errors.js";
import { LINGER_MS, respondProblem } from "./raw-problem.js";

/** At least so many bytes of a body, or its end, within so long. */
export interface BodyPace {
  bytes: number;
  withinMs: number;
}

/** A bucket of 1 GiB would take three weeks at this pace: it is no limit for whoever sends, only for who does not. */
export const BODY_PACE: BodyPace = { bytes: 16 * 1024, withinMs: 30_000 };

/** Looks are counted, not milliseconds: while this process stands still nobody can see what has come. */
const LOOKS_A_WINDOW = 10;

export function watchBody(request: IncomingMessage, response: ServerResponse, pace: BodyPace): void {
  if (!hasBody(request)) return;
  const { socket } = request;
  // A window begins whenever the one before has brought enough, or the client could not send: so none that is slow lasts two.
  let window = { bytesBefore: socket.bytesRead, looks: 0 };
  const timer = setInterval(() => {
    window.looks += 1;
    if (request.complete) clearInterval(timer);
    else if (isBackedUp(request) || socket.bytesRead - window.bytesBefore >= pace.bytes) {
      window = { bytesBefore: socket.bytesRead, looks: 0 };
    } else if (window.looks >= LOOKS_A_WINDOW) {
      clearInterval(timer);
      giveUp(request, response, pace);
    }
  }, pace.withinMs / LOOKS_A_WINDOW);
  request.once("close", () => clearInterval(timer));
  socket.once("close", () => clearInterval(timer));
  response.once("finish", () => {
    clearInterval(timer); // the connection has a time of its own from here on
    closeUnlessWhole(request);
  });
}

function hasBody({ headers }: IncomingMessage): boolean {
  return headers["transfer-encoding"] !== undefined || Number(headers["content-length"] ?? 0) > 0;
}

/** What has come waits for whoever reads it: the client is not to blame. */
function isBackedUp(request: IncomingMessage): boolean {
  return request.readableLength > 0;
}

/** Whoever reads the body finds it broken off once the connection is destroyed. */
function giveUp(request: IncomingMessage, response: ServerResponse, { bytes, withinMs }: BodyPace): void {
  if (response.headersSent) {
    request.socket.destroy();
    return;
  }
  const error = new LayercastError(
    "request_timeout",
    `less than ${countOf(bytes, "byte")} of the request's body came within ${withinMs} ms; send it again, without a pause`,
    { bytes, within_ms: withinMs },
  );
  respondProblem(response, { error, status: 408, instance: request.url?.split("?", 1)[0] ?? "/" });
}

/** The answer was sent before the body had come: what still comes is of no use, and cannot be told from the next request. */
function closeUnlessWhole(request: IncomingMessage): void {
  if (request.complete) return;
  request.removeAllListeners("readable"); // of a reader that stopped in the middle: it would keep the rest from flowing
  request.resume();
  setTimeout(() => {
    if (!request.complete) request.socket.destroy();
  }, LINGER_MS).unref();
}
