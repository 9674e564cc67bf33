// The HTTP side of hooks: one request to every engine at once, all within one time limit.

import { LayercastError } from "../contract/errors.js";
import type { HookRequest } from "./protocol/state.js";

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

export const callEngines: CallEngines = async (call) => {
  const signal = AbortSignal.timeout(call.timeoutMs);
  let firstAnswer: number | null = null;
  const calls = call.urls.map(async (url) => {
    await callEngine(url, call, signal);
    firstAnswer ??= performance.now();
  });
  for (const outcome of await Promise.allSettled(calls)) if (outcome.status === "rejected") throw outcome.reason;
  return firstAnswer === null ? 0 : performance.now() - firstAnswer;
};

async function callEngine(url: string, call: EngineCall, signal: AbortSignal): Promise<void> {
  const response = await ask(url, call, signal);
  if (response.ok) {
    await response.body?.cancel().catch(() => undefined); // it has answered, whatever becomes of the rest
    return;
  }
  const words = (await response.text().catch(() => "")).slice(0, MAX_WORDS);
  throw failure(url, call, `answered ${response.status}${words === "" ? "" : `: ${words}`}`, {
    status: response.status,
  });
}

const MAX_WORDS = 200;

/** Once more when the connection broke: pausing and resuming twice is the same as once, and a kept one may be stale. */
async function ask(url: string, call: EngineCall, signal: AbortSignal): Promise<Response> {
  const { reload, epoch, request } = call;
  const headers: Record<string, string> = { "layercast-reload": reload, "layercast-epoch": String(epoch) };
  if (request.body !== null) headers["content-type"] = "application/json";
  const body = request.body === null ? null : JSON.stringify(request.body);
  const send = () => fetch(url, { method: request.method, headers, body, signal, redirect: "error" });
  try {
    return await send().catch((error: unknown) => {
      if (signal.aborted) throw error;
      return send();
    });
  } catch (error) {
    const why = signal.aborted
      ? `did not answer within ${call.timeoutMs} ms`
      : `could not be reached (${reason(error)})`;
    throw failure(url, call, why, { timeout_ms: call.timeoutMs });
  }
}

function failure(url: string, { what }: EngineCall, why: string, facts: Record<string, unknown>): LayercastError {
  const next = what === "pause" ? "look at the engine, then submit again" : "it is tried again until it works";
  return new LayercastError("hook_failed", `the ${what} hook ${url} ${why}; ${next}`, { hook: what, url, ...facts });
}

/** fetch says only that it failed; its cause says why, if only by a code when a name has several addresses. */
function reason(error: unknown): string {
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
  if (!(cause instanceof Error)) return String(cause);
  return cause.message === "" ? String((cause as { code?: unknown }).code ?? cause.name) : cause.message;
}
