// The HTTP side of hooks: one request to every engine at once, all within one time limit. Requests are made with node:http and
// not with fetch: each has a connection of its own that the limit destroys, whatever the engine still sends on it; no redirect
// is followed, no compression decoded, and of an answer no more is read than is shown.

import http, { type ClientRequest, type IncomingMessage } from "node:http";
import https from "node:https";
import { LayercastError } from "../contract/errors.js";
import type { HookRequest } from "../fleet/state.js";
import { type HookHosts, openHookHosts } from "./hook-hosts.js";

export interface EngineCall {
  what: "pause" | "resume";
  request: HookRequest;
  /** Of the request's urls, those to call. */
  urls: string[];
  reload: string;
  epoch: number;
  timeoutMs: number;
}

/** Resolves with how long ago the first engine answered, ms; throws `hook_failed`, once all have answered or failed. */
export type CallEngines = (call: EngineCall) => Promise<number>;

export function engineCaller(hosts: HookHosts): CallEngines {
  return async (call) => {
    const limit = new AbortController();
    const timer = setTimeout(() => limit.abort(), call.timeoutMs);
    let firstAnswer: number | null = null;
    const calls = call.urls.map(async (url) => {
      await callEngine(url, call, hosts, limit.signal);
      firstAnswer ??= performance.now();
    });
    const outcomes = await Promise.allSettled(calls).finally(() => clearTimeout(timer));
    for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
    return firstAnswer === null ? 0 : performance.now() - firstAnswer;
  };
}

/** To any host that is allowed by default. */
export const callEngines: CallEngines = engineCaller(openHookHosts([]));

async function callEngine(url: string, call: EngineCall, hosts: HookHosts, limit: AbortSignal): Promise<void> {
  const refusal = hosts.refusal(new URL(url));
  if (refusal !== null) throw failure(url, call, `was not sent: ${refusal}`, {});
  const { status, words } = await askTwice(url, call, hosts, limit);
  if (status >= 200 && status < 300) return;
  throw failure(url, call, `answered ${status}${words === "" ? "" : `: ${words}`}`, { status });
}

interface Answer {
  status: number;
  /** The beginning of an error's body. */
  words: string;
}

/** Once more when the connection broke: pausing and resuming twice is the same as once. */
async function askTwice(url: string, call: EngineCall, hosts: HookHosts, limit: AbortSignal): Promise<Answer> {
  const send = () => ask(url, call, hosts, limit);
  try {
    return await send().catch((error: unknown) => {
      if (limit.aborted) throw error;
      return send();
    });
  } catch (error) {
    const why = limit.aborted
      ? `did not answer within ${call.timeoutMs} ms`
      : `could not be reached (${reason(error)})`;
    throw failure(url, call, why, { timeout_ms: call.timeoutMs });
  }
}

/** The connection is closed when this settles. */
async function ask(url: string, call: EngineCall, hosts: HookHosts, limit: AbortSignal): Promise<Answer> {
  const body = call.request.body === null ? null : JSON.stringify(call.request.body);
  const request = open(url, call, hosts, body);
  const giveUp = () => request.destroy(new Error("the time limit passed"));
  limit.addEventListener("abort", giveUp, { once: true });
  try {
    if (limit.aborted) giveUp();
    const response = await answerTo(request, body);
    const status = response.statusCode ?? 0;
    return { status, words: status >= 200 && status < 300 ? "" : await wordsOf(response) };
  } finally {
    limit.removeEventListener("abort", giveUp);
    request.destroy();
  }
}

function open(url: string, { reload, epoch, request }: EngineCall, { lookup }: HookHosts, body: string | null) {
  const headers: http.OutgoingHttpHeaders = {
    "layercast-reload": reload,
    "layercast-epoch": String(epoch),
    "accept-encoding": "identity",
  };
  if (body !== null) headers["content-type"] = "application/json";
  if (body !== null || request.method !== "GET") headers["content-length"] = Buffer.byteLength(body ?? "");
  const { request: begin } = url.startsWith("https:") ? https : http;
  return begin(url, { method: request.method, headers, agent: false, lookup });
}

function answerTo(request: ClientRequest, body: string | null): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    request.on("error", reject); // stays: a connection may also break after the answer has begun
    request.on("response", resolve);
    request.end(body ?? "");
  });
}

const MAX_WORDS = 200;
/** UTF-8 has at most four bytes a character. */
const MAX_WORDS_BYTES = 4 * MAX_WORDS;
/** That the engine failed is known by now: its words are waited for no longer than this. */
const WORDS_WITHIN_MS = 1_000;

/** What has come of an error's body by the time its connection ends, or there is enough of it. */
function wordsOf(response: IncomingMessage): Promise<string> {
  if ((response.headers["content-encoding"] ?? "identity") !== "identity") return Promise.resolve("");
  return new Promise((resolve) => {
    const chunks: Buffer[] = [];
    let bytes = 0;
    const end = () => {
      clearTimeout(timer);
      // A character that was cut in two is left out.
      const text = new TextDecoder().decode(Buffer.concat(chunks).subarray(0, MAX_WORDS_BYTES), { stream: true });
      resolve(text.slice(0, MAX_WORDS));
    };
    const timer = setTimeout(end, WORDS_WITHIN_MS);
    response.on("data", (chunk: Buffer) => {
      if (bytes < MAX_WORDS_BYTES) chunks.push(chunk);
      bytes += chunk.byteLength;
      if (bytes >= MAX_WORDS_BYTES) end();
    });
    response.on("error", end);
    response.on("close", end);
  });
}

function failure(url: string, { what }: EngineCall, why: string, facts: Record<string, unknown>): LayercastError {
  const next = what === "pause" ? "look at the engine, then submit again" : "it is tried again until it works";
  return new LayercastError("hook_failed", `the ${what} hook ${url} ${why}; ${next}`, { hook: what, url, ...facts });
}

/** Of a name with several addresses only the code says why. */
function reason(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.message === "" ? String((error as { code?: unknown }).code ?? error.name) : error.message;
}
