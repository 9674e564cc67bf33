import { expect } from "vitest";
import { type ErrorCode, LayercastError } from "../../orchestrator/contract/errors.js";

/** Runs `action`, which must throw a LayercastError of this code whose sentence matches; returns it. */
export function expectLayercastError(action: () => unknown, code: ErrorCode, sentence: RegExp): LayercastError {
  try {
    action();
  } catch (error) {
    return expectThatError(error, code, sentence);
  }
  throw new Error(`nothing was thrown; expected ${code}`);
}

export async function expectLayercastRejection(
  promise: Promise<unknown>,
  code: ErrorCode,
  sentence: RegExp,
): Promise<LayercastError> {
  const outcome = await promise.then(
    () => null,
    (error: unknown) => ({ error }),
  );
  if (outcome === null) throw new Error(`the promise was fulfilled; expected ${code}`);
  return expectThatError(outcome.error, code, sentence);
}

function expectThatError(error: unknown, code: ErrorCode, sentence: RegExp): LayercastError {
  if (!(error instanceof LayercastError)) throw error;
  expect({ code: error.code, message: error.message }).toEqual({ code, message: expect.stringMatching(sentence) });
  return error;
}
