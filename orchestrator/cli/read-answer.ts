// What an HTTP answer holds, read within limits of time and size. fetch forgets its signal once the garbage collector has taken
// its request, and a body may then be waited for without an end: each read here races with the limit itself.

export interface Limit {
  /** Aborted when the limit has passed, or by who waits. */
  readonly signal: AbortSignal;
  /** The promise's value, if it comes in time; then the rejection is the reason that the signal has. */
  hold<Value>(promise: Promise<Value>): Promise<Value>;
  /** Something went on: the time begins again. */
  refresh(): void;
  end(): void;
}

/** `outer`: who waits may also give up. */
export function startLimit(withinMs: number, outer?: AbortSignal): Limit {
  const controller = new AbortController();
  const { signal } = controller;
  const timer = setTimeout(() => controller.abort(new Error(`nothing went on for ${withinMs} ms`)), withinMs);
  const giveUp = () => controller.abort(outer?.reason);
  outer?.addEventListener("abort", giveUp, { once: true });
  if (outer?.aborted) giveUp();
  const aborted = new Promise<never>((_, reject) => {
    const fail = () => reject(signal.reason);
    signal.addEventListener("abort", fail, { once: true });
    if (signal.aborted) fail();
  });
  aborted.catch(() => undefined); // perhaps nothing is held when it passes
  return {
    signal,
    hold: (promise) => Promise.race([promise, aborted]),
    refresh: () => void timer.refresh(),
    end() {
      clearTimeout(timer);
      outer?.removeEventListener("abort", giveUp);
    },
  };
}

/** The body's chunks as they come, each within the limit; the connection is given up when the reader stops early. */
export async function* chunksOf(response: Response, limit: Limit): AsyncGenerator<Uint8Array> {
  if (response.body === null) return;
  const reader = response.body.getReader();
  try {
    while (true) {
      const { done, value } = await limit.hold(reader.read());
      if (done) return;
      yield value;
    }
  } finally {
    void reader.cancel().catch(() => undefined);
  }
}

/** The whole body as text; null when it has more bytes. */
export async function readText(response: Response, limit: Limit, maxBytes: number): Promise<string | null> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of chunksOf(response, limit)) {
    bytes += chunk.byteLength;
    if (bytes > maxBytes) return null;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString();
}
