// The hooks of a request, written out or by a preset's name -> the protocol's Hooks, and back. Pure.

import { countOf } from "../contract/count-of.js";
import { LayercastError } from "../contract/errors.js";
import { type HooksRequest, type HooksView, type PauseMode, PRESET_MODES, type PresetName } from "../contract/hooks.js";
import type { HookRequest, Hooks } from "../fleet/state.js";

type WrittenRequest = NonNullable<HooksRequest["pause"]>;
type Route = Pick<HookRequest, "method" | "body"> & { path: string };

/** An engine's own routes for standing still and going on. A new preset is one row here and one in PRESET_MODES. */
const PRESETS: Record<PresetName, { pause(mode: PauseMode, clearCache: boolean): Route; resume: Route }> = {
  vllm: {
    pause: (mode, clearCache) => ({
      method: "POST",
      path: `/pause?mode=${mode}&clear_cache=${clearCache}`,
      body: null,
    }),
    resume: { method: "POST", path: "/resume", body: null },
  },
  sglang: {
    pause: (mode) => ({ method: "POST", path: "/pause_generation", body: { mode } }),
    resume: { method: "POST", path: "/continue_generation", body: {} },
  },
};

export function hooksOf(request: HooksRequest): Hooks {
  const requests = request.preset === undefined ? writtenOut(request) : ofPreset(request, request.preset);
  return { ...requests, timeoutMs: request.timeout_ms, onFailure: request.on_failure };
}

/** What hooksOf() makes the same hooks of again. */
export function viewHooks({ pause, resume, timeoutMs, onFailure }: Hooks): HooksView {
  const view = ({ urls, method, body }: HookRequest) => ({ url: oneOrAll(urls), method, body });
  return { pause: view(pause), resume: view(resume), timeout_ms: timeoutMs, on_failure: onFailure };
}

function oneOrAll(urls: string[]): string | string[] {
  const [first] = urls;
  return urls.length === 1 && first !== undefined ? first : urls;
}

function writtenOut(request: HooksRequest): Pick<Hooks, "pause" | "resume"> {
  for (const field of ["url", "mode", "clear_cache"] as const) {
    if (request[field] !== undefined) throw refused(field, `${field} goes with a preset: name one, or leave it out`);
  }
  const { pause, resume } = request;
  if (pause === undefined) throw refused("pause", "pause is missing: give pause and resume, or a preset and its url");
  if (resume === undefined) throw refused("resume", "resume is missing: what is paused must be resumed");
  return { pause: requestOf("pause", pause), resume: requestOf("resume", resume) };
}

/** Each step of a reload reads the fleet's state, and with it its hooks. */
const MAX_BODY_BYTES = 16_384;

function requestOf(name: "pause" | "resume", { url, method, body }: WrittenRequest): HookRequest {
  if (method === "GET" && body !== null) {
    throw refused(`${name}.body`, `${name}.method is GET, which carries no body: leave ${name}.body out, or use POST`);
  }
  const bytes = Buffer.byteLength(JSON.stringify(body));
  if (bytes > MAX_BODY_BYTES) {
    throw refused(
      `${name}.body`,
      `${name}.body has ${countOf(bytes, "byte")} as JSON; at most ${MAX_BODY_BYTES} are taken`,
    );
  }
  return { urls: listOf(url).map((text) => parseUrl(`${name}.url`, text).href), method, body };
}

function ofPreset(request: HooksRequest, preset: PresetName): Pick<Hooks, "pause" | "resume"> {
  for (const name of ["pause", "resume"] as const) {
    if (request[name] === undefined) continue;
    throw refused(name, `preset ${preset} says what ${name} is: leave ${name} out, or write both out without a preset`);
  }
  if (request.url === undefined) {
    throw refused(
      "url",
      `url is missing: say where the ${preset} engine is, such as http://host:8000, or one a replica`,
    );
  }
  if (preset !== "vllm" && request.clear_cache !== undefined) {
    throw refused("clear_cache", `clear_cache is an option of preset vllm; the routes of ${preset} have none like it`);
  }
  const bases = listOf(request.url).map(baseOf);
  const at = ({ path, method, body }: Route) => ({ urls: bases.map((base) => base + path), method, body });
  const { pause, resume } = PRESETS[preset];
  return { pause: at(pause(modeOf(preset, request.mode), request.clear_cache ?? true)), resume: at(resume) };
}

function modeOf(preset: PresetName, asked: PauseMode | undefined): PauseMode {
  const modes: readonly PauseMode[] = PRESET_MODES[preset];
  if (asked === undefined) return PRESET_MODES[preset][0];
  if (modes.includes(asked)) return asked;
  throw refused("mode", `mode is "${asked}", but ${preset} pauses with one of ${modes.join(", ")}`);
}

function listOf(url: string | string[]): string[] {
  return typeof url === "string" ? [url] : url;
}

function baseOf(text: string): string {
  const url = parseUrl("url", text);
  if (url.search === "" && url.hash === "") return url.href.replace(/\/+$/, "");
  throw refused("url", `url is the engine's own address, such as ${url.origin}: leave what follows ? or # out`);
}

/** Nothing is repeated that may hold a password: the words would be logged. */
function parseUrl(path: string, text: string): URL {
  const url = URL.canParse(text) ? new URL(text) : null;
  if (url !== null && (url.username !== "" || url.password !== "")) {
    throw refused(
      path,
      `${path} holds credentials, and hooks are stored and shown as they are: give a URL without them`,
    );
  }
  if (url !== null && (url.protocol === "http:" || url.protocol === "https:")) return url;
  const shown = text.includes("@") ? "not one" : JSON.stringify(text);
  throw refused(path, `${path} is ${shown}, but must be a full http:// or https:// URL`);
}

function refused(path: string, message: string): LayercastError {
  return new LayercastError("invalid_request", `the request's body is not valid: ${message}`, {
    in: "body",
    errors: [{ path, message }],
  });
}
