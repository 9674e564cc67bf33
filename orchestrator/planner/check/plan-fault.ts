// What the checks of a plan throw: a fault of ours, not of the checkpoint or the request.

import { LayercastError } from "../../contract/errors.js";

export function planFault(what: string, details: Record<string, unknown>): LayercastError {
  return new LayercastError(
    "internal",
    `The plan is wrong: ${what}. Report this with the checkpoint's config.`,
    details,
  );
}
