// The orchestrator's REST API as functions: the only place of the CLI that speaks HTTP. An answer that is not 2xx becomes
// the LayercastError that it describes.

import { ERRORS, type ErrorCode, LayercastError } from "../contract/errors.js";
import type { HooksView } from "../contract/hooks.js";
import type { BucketView, ExpectedTensorsView } from "../contract/push.js";
import type { ExportView, FleetView, PlanRequest, PlanView, ReloadView, RollbackRequest } from "../contract/reload.js";
import { parseEventStream, type StreamEvent } from "./event-stream.js";
import { chunksOf, type Limit, readText, startLimit } from "./read-answer.js";

/** A submit's body as a client writes it: what is left out, the orchestrator fills in. */
export interface SubmitDraft {
  source:
    | { kind: "safetensors"; uri: string }
    | { kind: "push"; config: Record<string, unknown>; [field: string]: unknown };
  [field: string]: unknown;
}

export interface PushDraft {
  kind: "push";
  config: Record<string, unknown>;
  [field: string]: unknown;
}

export type PlanDraft = Pick<PlanRequest, "source"> & { [field: string]: unknown };

export interface Client {
  readonly url: string;
  submit(body: SubmitDraft): Promise<ReloadView>;
  plan(body: PlanDraft): Promise<PlanView>;
  reload(id: string): Promise<ReloadView>;
  /** Newest first, as many pages as `limit` asks for. */
  reloads(filter: ReloadsFilter): Promise<ReloadView[]>;
  cancel(id: string): Promise<ReloadView>;
  /** What a push is to be sent, in the order in which modules are complete the soonest. */
  expectedTensors(id: string): Promise<ExpectedTensorsView>;
  postBucket(id: string, body: { uri: string; immutable: boolean }): Promise<BucketView>;
  putBucket(id: string, bucket: number, body: StreamedBody): Promise<BucketView>;
  /** Answers once the bucket is consumed or wanted, or after the wait. */
  bucket(id: string, bucket: number, waitMs: number): Promise<BucketView>;
  finish(id: string): Promise<ReloadView>;
  rollback(fleet: string, body: RollbackRequest): Promise<ReloadView>;
  fleets(): Promise<FleetView[]>;
  fleet(name: string): Promise<FleetView>;
  hooks(fleet: string): Promise<HooksView>;
  setHooks(fleet: string, body: unknown): Promise<HooksView>;
  clearHooks(fleet: string): Promise<void>;
  drain(fleet: string, replica: number): Promise<FleetView>;
  undrain(fleet: string, replica: number): Promise<FleetView>;
  exportRank(fleet: string, replica: number, rank: number): Promise<ExportView>;
  /** An export's bytes from `from` on, until they end or the connection does. */
  readExport(fleet: string, id: string, from: number): AsyncGenerator<Uint8Array>;
  removeExport(fleet: string, id: string): Promise<void>;
  /** What came after the event `afterId` (null: from the start), until the orchestrator ends the stream. */
  events(id: string, afterId: string | null, signal: AbortSignal): AsyncGenerator<StreamEvent>;
  /** Whether an orchestrator answers and can work. */
  ready(): Promise<boolean>;
}

export interface ReloadsFilter {
  /** null: of any. */
  fleet: string | null;
  state: string | null;
  limit: number;
}

interface ReloadsPage {
  reloads: ReloadView[];
  next_cursor: string | null;
}

/** Bytes that are sent as they are made; each try makes them anew. */
export interface StreamedBody {
  sizeBytes: number;
  chunks(): AsyncIterable<Uint8Array>;
}

export const DEFAULT_URL = "http://127.0.0.1:8600";

/** The API takes no larger limit. */
const MOST_A_PAGE = 200;

const ANSWER_WITHIN_MS = 60_000;
/** The orchestrator's own limit for an export is shorter. */
const EXPORT_WITHIN_MS = 900_000;
/** The largest are plans and expected tensors of models with 100,000 tensors and more. */
const MAX_ANSWER_BYTES = 256 * 2 ** 20;
const MAX_PROBLEM_BYTES = 16 * 2 ** 20;

/** `answerWithinMs`: how long an orchestrator may take to answer, and a stream, which has signs of life, may be silent. */
export function createClient(url: string, token: string | null, answerWithinMs = ANSWER_WITHIN_MS): Client {
  const base = url.replace(/\/+$/, "");
  // A compressed answer may be far larger than what was sent.
  const plain: Record<string, string> = { "accept-encoding": "identity" };
  if (token !== null) plain.authorization = `Bearer ${token}`;

  const request = async (
    method: string,
    path: string,
    limit: Limit,
    init: { headers?: Record<string, string>; body?: unknown } = {},
  ): Promise<Response> => {
    const headers = { ...plain, ...init.headers };
    if (init.body !== undefined) headers["content-type"] = "application/json";
    const body = init.body === undefined ? {} : { body: JSON.stringify(init.body) };
    const sent = fetch(base + path, { method, headers, ...body, signal: limit.signal });
    const response = await limit.hold(sent).catch((error: unknown) => {
      throw unreachable(base, error);
    });
    if (!response.ok) throw await problemOf(response, `${method} ${base}${path}`, limit);
    return response;
  };
  const ask = async <Answer>(
    method: string,
    path: string,
    body?: unknown,
    withinMs = answerWithinMs,
  ): Promise<Answer> => {
    const limit = startLimit(withinMs);
    try {
      const response = await request(method, path, limit, { body });
      return (await readJson(response, `${method} ${base}${path}`, limit, MAX_ANSWER_BYTES)) as Answer;
    } finally {
      limit.end();
    }
  };
  const send = async <Answer>(path: string, body: StreamedBody): Promise<Answer> => {
    const limit = startLimit(answerWithinMs);
    const sent = watchedBody(body, limit);
    const headers = { ...plain, "content-type": "application/octet-stream", "content-length": `${body.sizeBytes}` };
    const asked = `PUT ${base}${path}`;
    try {
      const init = { method: "PUT", headers, body: sent.chunks, duplex: "half", signal: limit.signal } as const;
      const response = await limit.hold(fetch(base + path, init));
      if (!response.ok) throw await problemOf(response, asked, limit);
      return (await readJson(response, asked, limit, MAX_ANSWER_BYTES)) as Answer;
    } catch (error) {
      throw error instanceof LayercastError ? error : (sent.failure() ?? unreachable(base, error));
    } finally {
      limit.end();
      sent.end();
    }
  };

  return {
    url: base,
    submit: (body) => ask("POST", "/v1/reloads", body),
    plan: (body) => ask("POST", "/v1/plans", body),
    reload: (id) => ask("GET", `/v1/reloads/${encodeURIComponent(id)}`),
    reloads: async ({ fleet, state, limit }) => {
      const found: ReloadView[] = [];
      for (let cursor: string | null = null; ; ) {
        const page = { limit: Math.min(limit - found.length, MOST_A_PAGE), fleet, state, cursor };
        const answer: ReloadsPage = await ask("GET", `/v1/reloads?${queryOf(page)}`);
        found.push(...answer.reloads);
        cursor = answer.next_cursor;
        if (cursor === null || found.length >= limit) return found;
      }
    },
    cancel: (id) => ask("POST", `/v1/reloads/${encodeURIComponent(id)}/cancel`),
    expectedTensors: (id) => ask("GET", `/v1/reloads/${encodeURIComponent(id)}/tensors`),
    postBucket: (id, body) => ask("POST", `/v1/reloads/${encodeURIComponent(id)}/buckets`, body),
    putBucket: (id, bucket, body) => send(`/v1/reloads/${encodeURIComponent(id)}/buckets/${bucket}`, body),
    bucket: (id, bucket, waitMs) => {
      const path = `/v1/reloads/${encodeURIComponent(id)}/buckets/${bucket}?wait=${waitMs}ms`;
      return ask("GET", path, undefined, answerWithinMs + waitMs);
    },
    finish: (id) => ask("POST", `/v1/reloads/${encodeURIComponent(id)}/finish`),
    rollback: (fleet, body) => ask("POST", `/v1/fleets/${encodeURIComponent(fleet)}/rollback`, body),
    fleets: async () => (await ask<{ fleets: FleetView[] }>("GET", "/v1/fleets")).fleets,
    fleet: (name) => ask("GET", `/v1/fleets/${encodeURIComponent(name)}`),
    hooks: (fleet) => ask("GET", `/v1/fleets/${encodeURIComponent(fleet)}/hooks`),
    setHooks: (fleet, body) => ask("PUT", `/v1/fleets/${encodeURIComponent(fleet)}/hooks`, body),
    clearHooks: async (fleet) => {
      const limit = startLimit(answerWithinMs);
      await request("DELETE", `/v1/fleets/${encodeURIComponent(fleet)}/hooks`, limit).finally(limit.end);
    },
    drain: (fleet, replica) => ask("POST", `/v1/fleets/${encodeURIComponent(fleet)}/replicas/${replica}/drain`),
    undrain: (fleet, replica) => ask("POST", `/v1/fleets/${encodeURIComponent(fleet)}/replicas/${replica}/undrain`),
    exportRank: (fleet, replica, rank) =>
      ask("POST", `/v1/fleets/${encodeURIComponent(fleet)}/exports`, { replica, rank }, EXPORT_WITHIN_MS),
    readExport: async function* (fleet, id, from) {
      const limit = startLimit(answerWithinMs);
      try {
        const headers = from === 0 ? {} : { range: `bytes=${from}-` };
        const response = await request("GET", exportPath(fleet, id), limit, { headers });
        yield* refreshing(chunksOf(response, limit), limit);
      } catch (error) {
        throw error instanceof LayercastError ? error : unreachable(base, error);
      } finally {
        limit.end();
      }
    },
    removeExport: async (fleet, id) => {
      const limit = startLimit(answerWithinMs);
      await request("DELETE", exportPath(fleet, id), limit).finally(limit.end);
    },
    events: async function* (id, afterId, signal) {
      const headers = { accept: "text/event-stream", ...(afterId === null ? {} : { "last-event-id": afterId }) };
      const path = `/v1/reloads/${encodeURIComponent(id)}/events`;
      const limit = startLimit(answerWithinMs, signal);
      try {
        const response = await request("GET", path, limit, { headers });
        yield* parseEventStream(refreshing(chunksOf(response, limit), limit));
      } catch (error) {
        throw signal.aborted || error instanceof LayercastError ? error : unreachable(base, error);
      } finally {
        limit.end();
      }
    },
    ready: () =>
      ask("GET", "/readyz").then(
        () => true,
        () => false,
      ),
  };
}

const exportPath = (fleet: string, id: string) =>
  `/v1/fleets/${encodeURIComponent(fleet)}/exports/${encodeURIComponent(id)}`;

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

function queryOf(fields: Record<string, string | number | null>): URLSearchParams {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(fields)) if (value !== null) query.set(name, String(value));
  return query;
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
  if (text === null) throw notOurs(response, asked, `more than ${maxBytes} bytes`);
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
