// An orchestrator of one push, as far as `layercast push` sees it: takes buckets as bodies and as files, counts what is pending,
// and puts the tensors together from what came.

import { readFileSync } from "node:fs";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { fileURLToPath } from "node:url";
import { parseSafetensorsHeader } from "../../orchestrator/checkpoint/safetensors-header.js";
import { type BucketState, ROW_RANGES_KEY } from "../../orchestrator/contract/push.js";
import type { ReloadStateName } from "../../orchestrator/contract/reload.js";
import { PLAN, reloadView } from "./views.js";

export interface FakePush {
  url: string;
  /** "METHOD /path" of all requests, in order. */
  asked: string[];
  /** Of POST /v1/reloads. */
  submitted: Record<string, unknown> | null;
  planned: Record<string, unknown> | null;
  state: ReloadStateName;
  /** What the record says goes wrong. */
  error: { code: string; message: string; retryable: boolean; details: Record<string, unknown> } | null;
  buckets: Map<number, { state: BucketState; bytes: Uint8Array; uri: string | null }>;
  wanted: number[];
  /** Is wanted again once, when somebody waits for it. */
  wantsOnce: number | null;
  /** Most that were pending at a time. */
  mostPending: number;
  /** Buckets are consumed as they come; else when somebody says so, or waits for one. */
  consumesAtOnce: boolean;
  /** Of GET .../tensors. */
  expected: string[];
  /** Answers the next requests for a bucket instead; an answer of null breaks the connection off after the work was done. */
  refusals: ({ status: number; code: string; retryAfterS?: number } | null)[];
  /** What came, by tensor name: its rows in order. */
  received(): Map<string, Buffer>;
  close(): Promise<void>;
}

const ID = "reload-1";

export async function startFakePush(): Promise<FakePush> {
  const server = createServer((request, response) => void answer(push, request, response));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const push: FakePush = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    asked: [],
    submitted: null,
    planned: null,
    state: "planning",
    error: null,
    buckets: new Map(),
    wanted: [],
    wantsOnce: null,
    mostPending: 0,
    consumesAtOnce: true,
    expected: [],
    refusals: [],
    received: () => assemble([...push.buckets.values()].map(({ bytes }) => bytes)),
    close: () => new Promise((resolve) => void server.close(() => resolve())),
  };
  return push;
}

async function answer(push: FakePush, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const { method = "", url = "" } = request;
  const path = url.replace(`/v1/reloads/${ID}`, "").replace(/\?.*/, "");
  push.asked.push(`${method} ${path}`);
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  const body = Buffer.concat(chunks);
  const json = (value: unknown, status = 200, headers = {}) =>
    response.writeHead(status, { "content-type": "application/json", ...headers }).end(JSON.stringify(value));
  const [, number] = /^\/buckets\/(\d+)$/.exec(path) ?? [];
  if (method === "POST" && path === "/v1/reloads") {
    push.submitted = JSON.parse(body.toString()) as Record<string, unknown>;
    return void json(view(push), 202);
  }
  if (path === "/v1/plans") {
    push.planned = JSON.parse(body.toString()) as Record<string, unknown>;
    return void json(PLAN);
  }
  if (method === "GET" && path === "") {
    const read = view(push);
    if (push.state === "planning") push.state = "loading";
    return void json(read);
  }
  if (path === "/events") return void response.writeHead(200, { "content-type": "text/event-stream" }).end();
  if (path === "/tensors") return void json({ tensors: push.expected.map((name) => ({ name, modules: [] })) });
  if (path === "/cancel") return void json(view(Object.assign(push, { state: "cancelled" })));
  if (path === "/finish") return void json(view(Object.assign(push, { state: "committed" })), 202);
  if (method === "GET" && number !== undefined) {
    const bucket = push.buckets.get(Number(number));
    if (bucket === undefined) return void json({ code: "not_found", detail: "no such bucket", details: {} }, 404);
    const isWaitedFor = !url.includes("wait=0ms");
    if (isWaitedFor && push.wantsOnce === Number(number)) {
      push.wantsOnce = null;
      push.wanted.push(Number(number));
    }
    if (isWaitedFor && bucket.state === "pending") bucket.state = "consumed";
    return void json(bucketView(push, Number(number)));
  }
  take(push, method, number, body, json, response);
}

function take(
  push: FakePush,
  method: string,
  number: string | undefined,
  body: Buffer,
  json: (value: unknown, status?: number, headers?: object) => unknown,
  response: ServerResponse,
): void {
  const refusal = push.refusals.shift();
  if (refusal !== undefined && refusal !== null) {
    const { status, code, retryAfterS } = refusal;
    const headers = retryAfterS === undefined ? {} : { "retry-after": String(retryAfterS) };
    json({ code, detail: `refused: ${code}`, details: {} }, status, headers);
    return;
  }
  const uri = method === "POST" ? (JSON.parse(body.toString()) as { uri: string }).uri : null;
  // A file's number is the orchestrator's to choose: here none that anybody could guess.
  const known = [...push.buckets].find(([, bucket]) => uri !== null && bucket.uri === uri)?.[0];
  const at = method === "POST" ? (known ?? 100 + push.buckets.size) : Number(number);
  const bytes = uri === null ? body : readFileSync(fileURLToPath(uri));
  push.buckets.set(at, { state: push.consumesAtOnce ? "consumed" : "pending", bytes, uri });
  push.wanted = push.wanted.filter((one) => one !== at);
  const pending = [...push.buckets.values()].filter(({ state }) => state === "pending").length;
  push.mostPending = Math.max(push.mostPending, pending);
  if (refusal === null) response.destroy();
  else json(bucketView(push, at), 202);
}

function bucketView(push: FakePush, bucket: number) {
  const { state, bytes } = push.buckets.get(bucket) ?? { state: "pending", bytes: new Uint8Array() };
  const shown = push.wanted.includes(bucket) ? "wanted" : state;
  return { reload_id: ID, bucket, state: shown, bytes: bytes.byteLength, tensors: 1, waiting_for: [] };
}

function view(push: FakePush) {
  const buckets = { accepted: push.buckets.size, consumed: push.buckets.size, wanted: push.wanted };
  const { state, error } = push;
  const ended = ["committed", "failed", "cancelled"].includes(state);
  return {
    ...reloadView({ state, source: "push", ranks: [] }),
    error,
    finished_at: ended ? "2026-01-01T00:00:00.000Z" : null,
    push: { retain: "spool", partial: false, finished: state === "committed", buckets },
  };
}

function assemble(files: readonly Uint8Array[]): Map<string, Buffer> {
  const rows = new Map<string, { firstRow: number; bytes: Uint8Array }[]>();
  for (const file of files) {
    const { tensors, metadata } = parseSafetensorsHeader(file, file.byteLength);
    const ranges = JSON.parse(metadata.get(ROW_RANGES_KEY) ?? "{}") as Record<string, { offset: number[] }>;
    for (const { name, offset, sizeBytes } of tensors) {
      const part = { firstRow: ranges[name]?.offset[0] ?? 0, bytes: file.subarray(offset, offset + sizeBytes) };
      rows.set(
        name,
        [...(rows.get(name) ?? []), part].sort((a, b) => a.firstRow - b.firstRow),
      );
    }
  }
  return new Map([...rows].map(([name, parts]) => [name, Buffer.concat(parts.map(({ bytes }) => bytes))]));
}
