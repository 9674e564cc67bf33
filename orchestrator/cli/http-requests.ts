// HTTP requests to an orchestrator: the only place of the CLI that speaks HTTP. Each has a limit of time within which something must go
// on; an answer that is not 2xx becomes the LayercastError that it describes, and a connection that fails one that names the URL.

import { countOf } from "../contract/count-of.js";
import { ERRORS, type ErrorCode, LayercastError } from "../contract/errors.js";
import { chunksOf, type Limit, readText, startLimit } from "./read-answer.js";

/** Bytes that are sent as they are made; each try makes them again. */
export interface StreamedBody {
  sizeBytes: number;
  chunks(): AsyncIterable<Uint8Array>;
}

interface AskOptions {
  /** Instead of the usual limit. */
  withinMs?: number;
  /** How long the orchestrator was asked to wait before it answers. */
  waitMs?: number;
}

export interface Requests {
  /** Without a slash at its end. */
  readonly base: string;
  /** The JSON object that is answered. */
  ask<Answer>(method: string, path: string, body?: unknown, options?: AskOptions): Promise<Answer>;
  /** PUT of bytes. */
  send<Answer>(path: string, body: StreamedBody): Promise<Answer>;
  /** DELETE, which answers nothing. */
  remove(path: string): Promise<void>;
  /** GET of a stream: what `parse` makes of its bytes, until they end or the connection does. */
  stream<Part>(path: string, headers: Record<string, string>, parse: Parser<Part>, signal?: AbortSignal): Parts<Part>;
}

type Parts<Part> = AsyncGenerator<Part, void, undefined>;
type Parser<Part> = (chunks: Parts<Uint8Array>) => Parts<Part>;

const ANSWER_WITHIN_MS = 60_000;
/** The largest are plans and expected tensors of models with 100,000 tensors and more. */
const MAX_ANSWER_BYTES = 256 * 2 ** 20;
const MAX_PROBLEM_BYTES = 16 * 2 ** 20;

/** `answerWithinMs`: until an answer, and between two chunks of one. */
export function openRequests(url: string, token: string | null, answerWithinMs = ANSWER_WITHIN_MS): Requests {
  const base = url.replace(/\/+$/, "");
  const open = openFetch(base, token);
  const within = limiting(base);
  const answer = async <Answer>(path: string, init: RequestInit & { method: string }, limit: Limit) => {
    const response = await open(path, init, limit);
    return (await readJson(response, `${init.method} ${base}${path}`, limit, MAX_ANSWER_BYTES)) as Answer;
  };
  return {
    base,
    ask(method, path, body, { withinMs = answerWithinMs, waitMs = 0 } = {}) {
      const json = body === undefined ? {} : { headers: JSON_BODY, body: JSON.stringify(body) };
      return within(startLimit(withinMs + waitMs), (limit) => answer(path, { method, ...json }, limit));
    },
    send<Answer>(path: string, body: StreamedBody) {
      const limit = startLimit(answerWithinMs);
      const sent = watchedBody(body, limit);
      const headers = { ...BYTES_BODY, "content-length": `${body.sizeBytes}` };
      const init = { method: "PUT", headers, body: sent.chunks, duplex: "half" } as const;
      return within(limit, () => answer<Answer>(path, init, limit), sent.failure).finally(sent.end);
    },
    remove: (path) =>
      within(startLimit(answerWithinMs), async (limit) => {
        await open(path, { method: "DELETE" }, limit);
      }),
    async *stream(path, headers, parse, signal) {
      const limit = startLimit(answerWithinMs, signal);
      try {
        const response = await open(path, { method: "GET", headers }, limit);
        yield* parse(refreshing(chunksOf(response, limit), limit));
      } catch (error) {
        throw signal?.aborted || error instanceof LayercastError ? error : unreachable(base, error);
      } finally {
        limit.end();
      }
    },
  };
}

const JSON_BODY = { "content-type": "application/json" };
const BYTES_BODY = { "content-type": "application/octet-stream" };

/** fetch of an answer that is 2xx; another is thrown as what it describes. */
function openFetch(base: string, token: string | null) {
  // A compressed answer may be far larger than what was sent.
  const plain: Record<string, string> = { "accept-encoding": "identity" };
  if (token !== null) plain.authorization = `Bearer ${token}`;
  return async (path: string, init: RequestInit & { method: string }, limit: Limit): Promise<Response> => {
    const headers = { ...plain, ...(init.headers as Record<string, string> | undefined) };
    const response = await limit.hold(fetch(base + path, { ...init, headers, signal: limit.signal }));
    if (!response.ok) throw await problemOf(response, `${init.method} ${base}${path}`, limit);
    return response;
  };
}

/** Uses a limit and ends it. `failure`: what went wrong on this side, and so counts before what the connection says. */
function limiting(base: string) {
  return async <Value>(
    limit: Limit,
    use: (limit: Limit) => Promise<Value>,
    failure: () => unknown = () => null,
  ): Promise<Value> => {
    try {
      return await use(limit);
    } catch (error) {
      throw error instanceof LayercastError ? error : (failure() ?? unreachable(base, error));
    } finally {
      limit.end();
    }
  };
}

/** The same chunks; each that is asked for, and their end, begins the limit's time again. */
function watchedBody(body: StreamedBody, limit: Limit) {
  let failure: unknown = null;
  async function* watched() {
    try {
      yield* refreshing(body.chunks(), limit);
    } catch (error) {
      failure = error;
      throw error;
    }
  }
  const chunks = watched();
  return {
    chunks,
    /** What went wrong while the bytes were made, which is no fault of the connection. */
    failure: () => failure,
    /** An answer may come before all chunks were asked for. */
    end: () => void chunks.return().catch(() => undefined),
  };
}

async function* refreshing(chunks: AsyncIterable<Uint8Array>, limit: Limit): AsyncGenerator<Uint8Array> {
  for await (const chunk of chunks) {
    limit.refresh();
    yield chunk;
  }
  limit.refresh();
}

function unreachable(url: string, error: unknown): LayercastError {
  const cause = error instanceof Error ? (error.cause ?? error) : error;
  const { code } = cause as { code?: unknown };
  const reason = typeof code === "string" ? code : cause instanceof Error ? cause.message : String(cause);
  return new LayercastError(
    "io_error",
    `No orchestrator answers at ${url} (${reason}): start one with \`layercast up\`, or name another with --url or LAYERCAST_URL`,
    { url },
    error,
  );
}

async function problemOf(response: Response, asked: string, limit: Limit): Promise<LayercastError> {
  const problem = (await readJson(response, asked, limit, MAX_PROBLEM_BYTES)) as {
    code?: unknown;
    detail?: unknown;
    details?: unknown;
  };
  const details = { ...retryAfterOf(response), ...(isObject(problem.details) ? problem.details : {}) };
  const sentence = typeof problem.detail === "string" ? problem.detail : `${asked} answered ${response.status}`;
  if (isErrorCode(problem.code)) return new LayercastError(problem.code, sentence, details);
  return new LayercastError("internal", sentence, { ...details, code: problem.code, status: response.status });
}

function retryAfterOf(response: Response): { retry_after_s?: number } {
  const seconds = Number(response.headers.get("retry-after") ?? Number.NaN);
  return Number.isFinite(seconds) ? { retry_after_s: seconds } : {};
}

const isObject = (value: unknown): value is object => typeof value === "object" && value !== null;

function isErrorCode(code: unknown): code is ErrorCode {
  return typeof code === "string" && Object.hasOwn(ERRORS, code);
}

async function readJson(response: Response, asked: string, limit: Limit, maxBytes: number): Promise<unknown> {
  const text = await readText(response, limit, maxBytes).catch((error: unknown) => {
    throw unreachable(new URL(response.url).origin, error);
  });
  if (text === null) throw notOurs(response, asked, `more than ${countOf(maxBytes, "byte")}`);
  try {
    const value: unknown = JSON.parse(text);
    if (isObject(value)) return value;
  } catch {
    // Said below.
  }
  throw notOurs(response, asked, response.headers.get("content-type") ?? "no type");
}

function notOurs({ status }: Response, asked: string, what: string): LayercastError {
  const sentence = `${asked} answered ${status} with ${what} instead of a JSON object: is a Layercast orchestrator at that URL?`;
  return new LayercastError("internal", sentence, { status });
}
