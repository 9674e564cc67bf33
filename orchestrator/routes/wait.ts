// `?wait=30s` -> milliseconds.

import { LayercastError } from "../contract/errors.js";

export const MAX_WAIT_MS = 60_000;

const UNIT_MS = { ms: 1, s: 1000, m: 60_000 } as const;

export function parseWait(text: string | undefined): number {
  if (text === undefined) return 0;
  const match = /^(\d{1,6})(ms|s|m)$/.exec(text);
  const waitMs = match === null ? Number.NaN : Number(match[1]) * UNIT_MS[match[2] as keyof typeof UNIT_MS];
  if (waitMs <= MAX_WAIT_MS) return waitMs;
  throw new LayercastError(
    "invalid_request",
    `the request's query is not valid: wait is '${text}', but must be a whole number with its unit ms, s or m, ` +
      "at most 60s (such as 30s); to wait longer, ask again",
    { in: "query", errors: [{ path: "wait", message: "must be like 30s, at most 60s" }] },
  );
}
