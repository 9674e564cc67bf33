// The orchestrator's REST API as functions.

import type { HooksView } from "../contract/hooks.js";
import type { BucketView, ExpectedTensorsView } from "../contract/push.js";
import type { ExportView, FleetView, PlanRequest, PlanView, ReloadView, RollbackRequest } from "../contract/reload.js";
import { parseEventStream, type StreamEvent } from "./event-stream.js";
import { openRequests, type StreamedBody } from "./http-requests.js";

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

export const DEFAULT_URL = "http://127.0.0.1:8600";

/** The API takes no larger limit. */
const MOST_A_PAGE = 200;

/** The orchestrator's own limit for an export is shorter. */
const EXPORT_WITHIN_MS = 900_000;
/** `answerWithinMs`: how long an orchestrator may take to answer, and a stream, which has signs of life, may be silent. */
export function createClient(url: string, token: string | null, answerWithinMs?: number): Client {
  const { base, ask, send, remove, stream } = openRequests(url, token, answerWithinMs);
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
      return ask("GET", path, undefined, { waitMs });
    },
    finish: (id) => ask("POST", `/v1/reloads/${encodeURIComponent(id)}/finish`),
    rollback: (fleet, body) => ask("POST", `/v1/fleets/${encodeURIComponent(fleet)}/rollback`, body),
    fleets: async () => (await ask<{ fleets: FleetView[] }>("GET", "/v1/fleets")).fleets,
    fleet: (name) => ask("GET", `/v1/fleets/${encodeURIComponent(name)}`),
    hooks: (fleet) => ask("GET", `/v1/fleets/${encodeURIComponent(fleet)}/hooks`),
    setHooks: (fleet, body) => ask("PUT", `/v1/fleets/${encodeURIComponent(fleet)}/hooks`, body),
    clearHooks: (fleet) => remove(`/v1/fleets/${encodeURIComponent(fleet)}/hooks`),
    drain: (fleet, replica) => ask("POST", `/v1/fleets/${encodeURIComponent(fleet)}/replicas/${replica}/drain`),
    undrain: (fleet, replica) => ask("POST", `/v1/fleets/${encodeURIComponent(fleet)}/replicas/${replica}/undrain`),
    exportRank: (fleet, replica, rank) =>
      ask("POST", `/v1/fleets/${encodeURIComponent(fleet)}/exports`, { replica, rank }, { withinMs: EXPORT_WITHIN_MS }),
    readExport: (fleet, id, from) =>
      stream(exportPath(fleet, id), from === 0 ? {} : { range: `bytes=${from}-` }, (chunks) => chunks),
    removeExport: (fleet, id) => remove(exportPath(fleet, id)),
    events: (id, afterId, signal) => {
      const headers = { accept: "text/event-stream", ...(afterId === null ? {} : { "last-event-id": afterId }) };
      return stream(`/v1/reloads/${encodeURIComponent(id)}/events`, headers, parseEventStream, signal);
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

function queryOf(fields: Record<string, string | number | null>): URLSearchParams {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(fields)) if (value !== null) query.set(name, String(value));
  return query;
}
