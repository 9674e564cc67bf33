// The orchestrator's REST API as functions: the only place of the CLI that speaks HTTP. An answer that is not 2xx becomes
// the LayercastError that it describes.

import { readFileSync } from "node:fs";
import { ERRORS, type ErrorCode, LayercastError } from "../contract/errors.js";
import type { HooksView } from "../contract/hooks.js";
import type { BucketView, ExpectedTensorsView } from "../contract/push.js";
import type { ExportView, FleetView, PlanRequest, PlanView, ReloadView, RollbackRequest } from "../contract/reload.js";
import { parseEventStream, type StreamEvent } from "./event-stream.js";

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
  dryRun(body: SubmitDraft): Promise<PlanView>;
  plan(body: PlanDraft): Promise<PlanView>;
  reload(id: string): Promise<ReloadView>;
  reloads(fleet: string | null, limit: number): Promise<ReloadView[]>;
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
  exportRank(fleet: string, replica: number, rank: number): Promise<ExportView>;
  /** What came after the event `afterId` (null: from the start), until the orchestrator ends the stream. */
  events(id: string, afterId: string | null, signal: AbortSignal): AsyncGenerator<StreamEvent>;
  /** Whether an orchestrator answers and can work. */
  ready(): Promise<boolean>;
}

/** Bytes that are sent as they are made; each try makes them anew. */
export interface StreamedBody {
  sizeBytes: number;
  chunks(): AsyncIterable<Uint8Array>;
}

export const DEFAULT_URL = "http://127.0.0.1:8600";

const ANSWER_WITHIN_MS = 60_000;
/** The orchestrator's own limit for an export is shorter. */
const EXPORT_WITHIN_MS = 900_000;

/** `answerWithinMs`: how long an orchestrator may take to answer; what comes as a stream has no limit. */
export function createClient(url: string, token: string | null, answerWithinMs = ANSWER_WITHIN_MS): Client {
  const base = url.replace(/\/+$/, "");
  const authorization: Record<string, string> = token === null ? {} : { authorization: `Bearer ${token}` };

  const request = async (method: string, path: string, body?: unknown, init: RequestInit = {}): Promise<Response> => {
    const headers: Record<string, string> = { ...authorization, ...(init.headers as Record<string, string>) };
    if (body !== undefined) headers["content-type"] = "application/json";
    const sent = { ...init, method, headers, ...(body === undefined ? {} : { body: JSON.stringify(body) }) };
    const response = await fetch(base + path, sent).catch((error: unknown) => {
      throw unreachable(base, error);
    });
    if (!response.ok) throw await problemOf(response, `${method} ${base}${path}`);
    return response;
  };
  const ask = async <Answer>(
    method: string,
    path: string,
    body?: unknown,
    withinMs = answerWithinMs,
  ): Promise<Answer> => {
    const response = await request(method, path, body, { signal: AbortSignal.timeout(withinMs) });
    return (await readJson(response, `${method} ${base}${path}`)) as Answer;
  };
  const send = async <Answer>(path: string, body: StreamedBody): Promise<Answer> => {
    const sent = watchedBody(body, answerWithinMs);
    const headers = {
      ...authorization,
      "content-type": "application/octet-stream",
      "content-length": `${body.sizeBytes}`,
    };
    try {
      const response = await fetch(base + path, {
        method: "PUT",
        headers,
        body: sent.chunks,
        duplex: "half",
        signal: sent.signal,
      });
      if (!response.ok) throw await problemOf(response, `PUT ${base}${path}`);
      return (await readJson(response, `PUT ${base}${path}`)) as Answer;
    } catch (error) {
      throw error instanceof LayercastError ? error : (sent.failure() ?? unreachable(base, error));
    } finally {
      sent.end();
    }
  };

  return {
    url: base,
    submit: (body) => ask("POST", "/v1/reloads", body),
    dryRun: (body) => ask("POST", "/v1/reloads", { ...body, dry_run: true }),
    plan: (body) => ask("POST", "/v1/plans", body),
    reload: (id) => ask("GET", `/v1/reloads/${encodeURIComponent(id)}`),
    reloads: async (fleet, limit) => {
      const query = new URLSearchParams({ limit: String(limit), ...(fleet === null ? {} : { fleet }) });
      return (await ask<{ reloads: ReloadView[] }>("GET", `/v1/reloads?${query}`)).reloads;
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
      const signal = AbortSignal.timeout(answerWithinMs);
      await request("DELETE", `/v1/fleets/${encodeURIComponent(fleet)}/hooks`, undefined, { signal });
    },
    drain: (fleet, replica) => ask("POST", `/v1/fleets/${encodeURIComponent(fleet)}/replicas/${replica}/drain`),
    exportRank: (fleet, replica, rank) =>
      ask("POST", `/v1/fleets/${encodeURIComponent(fleet)}/exports`, { replica, rank }, EXPORT_WITHIN_MS),
    events: async function* (id, afterId, signal) {
      const headers = { accept: "text/event-stream", ...(afterId === null ? {} : { "last-event-id": afterId }) };
      const path = `/v1/reloads/${encodeURIComponent(id)}/events`;
      const response = await request("GET", path, undefined, { headers, signal });
      try {
        if (response.body !== null) yield* parseEventStream(response.body);
      } catch (error) {
        throw signal.aborted ? error : unreachable(base, error);
      }
    },
    ready: () => {
      const signal = AbortSignal.timeout(answerWithinMs);
      return fetch(`${base}/readyz`, { headers: authorization, signal }).then(answersWell, () => false);
    },
  };
}

/** The same chunks; the signal says when none has been asked for, nor the answer come, for so long. */
function watchedBody(body: StreamedBody, withinMs: number) {
  const stalled = new AbortController();
  const timer = setTimeout(() => stalled.abort(new Error(`nothing went on for ${withinMs} ms`)), withinMs);
  let failure: unknown = null;
  async function* watched() {
    try {
      for await (const chunk of body.chunks()) {
        timer.refresh();
        yield chunk;
      }
    } catch (error) {
      failure = error;
      throw error;
    }
    timer.refresh();
  }
  const chunks = watched();
  return {
    chunks,
    signal: stalled.signal,
    /** What went wrong while the bytes were made, which is no fault of the connection. */
    failure: () => failure,
    end() {
      clearTimeout(timer);
      // An answer may come before all chunks were asked for.
      void chunks.return().catch(() => undefined);
    },
  };
}

async function answersWell(response: Response): Promise<boolean> {
  await response.body?.cancel();
  return response.ok;
}

/** LAYERCAST_TOKEN, or what the file LAYERCAST_TOKEN_FILE holds. */
export function readToken(env: Readonly<Record<string, string | undefined>>): string | null {
  if (env.LAYERCAST_TOKEN !== undefined && env.LAYERCAST_TOKEN !== "") return env.LAYERCAST_TOKEN;
  const file = env.LAYERCAST_TOKEN_FILE;
  return file === undefined || file === "" ? null : readFileSync(file, "utf8").trim();
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

async function problemOf(response: Response, asked: string): Promise<LayercastError> {
  const problem = (await readJson(response, asked)) as { code?: unknown; detail?: unknown; details?: unknown };
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

async function readJson(response: Response, asked: string): Promise<unknown> {
  const text = await response.text().catch((error: unknown) => {
    throw unreachable(new URL(response.url).origin, error);
  });
  try {
    const value: unknown = JSON.parse(text);
    if (isObject(value)) return value;
  } catch {
    // Said below.
  }
  throw new LayercastError(
    "internal",
    `${asked} answered ${response.status} with ${response.headers.get("content-type") ?? "no type"} instead of a JSON ` +
      "object: is a Layercast orchestrator at that URL?",
    { status: response.status },
  );
}
