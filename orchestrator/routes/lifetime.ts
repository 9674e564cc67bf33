// How long a request may wait: until its client is gone or the server closes, whichever comes first.

import type { FastifyReply } from "fastify";

/** Aborted when the connection is gone, when the answer has been sent, and when the server closes. */
export function requestSignal(reply: FastifyReply, closing: AbortSignal): AbortSignal {
  const ended = new AbortController();
  const abort = () => ended.abort();
  if (closing.aborted) abort();
  closing.addEventListener("abort", abort, { once: true });
  reply.raw.once("close", () => {
    closing.removeEventListener("abort", abort);
    abort();
  });
  return ended.signal;
}

/** What a read answers within its wait; should the server close meanwhile, what it answers without one. */
export async function readInTime<T>(
  reply: FastifyReply,
  closing: AbortSignal,
  waitMs: number,
  read: (waitMs: number, signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const signal = requestSignal(reply, closing);
  const answer = await settleOrNull(read(waitMs, signal), signal, null);
  return answer ?? read(0, new AbortController().signal);
}

/** The promise's value, or null as soon as the signal is aborted or the limit has passed, whatever the promise then does. */
export function settleOrNull<T>(promise: Promise<T>, signal: AbortSignal, limitMs: number | null): Promise<T | null> {
  return new Promise((resolve, reject) => {
    const giveUp = () => finish(() => resolve(null));
    const timer = limitMs === null ? undefined : setTimeout(giveUp, limitMs);
    const finish = (settle: () => void) => {
      clearTimeout(timer);
      signal.removeEventListener("abort", giveUp);
      settle();
    };
    signal.addEventListener("abort", giveUp, { once: true });
    promise.then(
      (value) => finish(() => resolve(value)),
      (error: unknown) => finish(signal.aborted ? () => resolve(null) : () => reject(error)),
    );
    if (signal.aborted) giveUp();
  });
}
