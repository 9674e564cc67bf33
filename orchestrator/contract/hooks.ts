// The REST API's bodies for hooks: the requests that make engines stand still and go on, written out or named by a preset.

import { type Static, Type } from "typebox";
import { closed, oneOf } from "./schema.js";

/** The modes of each preset's pause route; the first is the one taken when none is named. */
export const PRESET_MODES = {
  vllm: ["keep", "wait", "abort"],
  sglang: ["abort", "retract", "in_place"],
} as const;
export type PresetName = keyof typeof PRESET_MODES;
export type PauseMode = (typeof PRESET_MODES)[PresetName][number];

export const PRESET_NAMES = Object.keys(PRESET_MODES) as PresetName[];
export const PAUSE_MODES: PauseMode[] = [...new Set(Object.values(PRESET_MODES).flat())];
export const ON_FAILURE = ["abort", "proceed"] as const;

/** Longer than this no HTTP client waits for an answer to begin. */
export const MAX_HOOK_TIMEOUT_MS = 300_000;

const EngineUrl = Type.String({ minLength: 1, maxLength: 2048 });
const EngineUrls = (description: string) =>
  Type.Unsafe<string | string[]>({
    anyOf: [EngineUrl, Type.Array(EngineUrl, { minItems: 1, maxItems: 1024 })],
    description,
  });

const HookRequestBody = Type.Object(
  {
    url: EngineUrls("http:// or https://; one for the whole fleet, or a list with one a replica, in their order"),
    method: oneOf(["POST", "PUT", "PATCH", "GET", "DELETE"], { default: "POST" }),
    body: Type.Unknown({ default: null, description: "Sent as JSON; null: no body" }),
  },
  closed,
);

export const HooksBody = Type.Object(
  {
    pause: Type.Optional(HookRequestBody),
    resume: Type.Optional(HookRequestBody),
    preset: Type.Optional(
      oneOf(PRESET_NAMES, { description: "Instead of pause and resume: those of this engine, at `url`" }),
    ),
    url: Type.Optional(EngineUrls("With a preset: the engine's address, such as http://host:8000, or one a replica")),
    mode: Type.Optional(
      oneOf(PAUSE_MODES, {
        description: `What becomes of requests in flight. ${PRESET_NAMES.map(
          (name) => `${name}: ${PRESET_MODES[name].join(", ")} (default ${PRESET_MODES[name][0]})`,
        ).join("; ")}`,
      }),
    ),
    clear_cache: Type.Optional(
      Type.Boolean({ description: "vllm: drop what the old weights left in the KV cache (default true)" }),
    ),
    timeout_ms: Type.Integer({
      minimum: 1,
      maximum: MAX_HOOK_TIMEOUT_MS,
      default: 30_000,
      description: "For all engines to answer one hook",
    }),
    on_failure: oneOf(ON_FAILURE, {
      default: "abort",
      description: "When an engine does not pause: fail the reload, or change the weights under it all the same",
    }),
  },
  { ...closed, $id: "HooksRequest" },
);
export type HooksRequest = Static<typeof HooksBody>;

const HookAnswer = Type.Object({
  url: EngineUrls("As in the request"),
  method: Type.String(),
  body: Type.Unknown(),
});

export const HooksAnswer = Type.Object(
  { pause: HookAnswer, resume: HookAnswer, timeout_ms: Type.Integer(), on_failure: oneOf(ON_FAILURE) },
  { $id: "Hooks" },
);
export type HooksView = Static<typeof HooksAnswer>;
