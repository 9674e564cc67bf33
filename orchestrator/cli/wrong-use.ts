// Settings that are wrong, and parts of the installation that are missing, stay so: exit code 2 tells whoever starts the process
// (a person, `up`, a service manager) that starting it again cannot help.

import { isCoreUnusable, loadNative } from "../../native/native.js";
import { LayercastError } from "../contract/errors.js";
import { type CommandContext, EXIT } from "./command.js";

/** An error of `run` that lies in how the process was started makes the exit code 2. */
export async function refusingWrongUse<Result>(
  context: CommandContext,
  run: () => Promise<Result> | Result,
): Promise<Result> {
  try {
    return await run();
  } catch (error) {
    const known = isCoreUnusable(error) ? new LayercastError("core_unusable", error.message, {}, error) : error;
    const isWrongUse =
      known instanceof LayercastError && (known.code === "invalid_request" || known.code === "core_unusable");
    if (isWrongUse) context.exitCode = EXIT.usage;
    throw known;
  }
}

/** Before processes are started of which each would find out by itself. */
export function requireNativeCore(): void {
  loadNative();
}
