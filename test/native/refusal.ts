// What the tests of the bridge share.

import { expect } from "vitest";
import { isNativeError, type NativeErrorCode } from "../../native/native.js";

/** The error of a call or a promise; fails the test when there is none or it is not the core's. */
export async function refusal(
  call: () => unknown,
): Promise<{ code: NativeErrorCode; details: Record<string, number> }> {
  try {
    await call();
  } catch (error) {
    if (!isNativeError(error)) throw error;
    expect(error.message).not.toBe("");
    return { code: error.code, details: error.details };
  }
  throw new Error("nothing was refused");
}
