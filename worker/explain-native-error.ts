// What the native core says in numbers, said in the checkpoint's names.

import { hostname } from "node:os";
import { isNativeError, type NativeError } from "../native/native.js";
import { LayercastError } from "../orchestrator/contract/errors.js";
import type { Layout } from "../orchestrator/contract/plan.js";
import type { ResolvedProgram } from "../orchestrator/program/make-program.js";
import { describeElement } from "../orchestrator/program/resolve.js";

/** What of a plan and its program a sentence may name. */
interface PlanNames {
  layout: Pick<Layout, "checkpointTensors">;
}
type ProgramNames = Pick<ResolvedProgram, "origins"> & { program: { files: readonly { path: string }[] } };

/** `what` is the work that failed, such as "layer model.layers.7". */
export function explainNativeError(error: unknown, plan: PlanNames, resolved: ProgramNames, what: string): unknown {
  if (!isNativeError(error)) return error;
  const file = resolved.program.files[error.details.file ?? -1]?.path ?? "a checkpoint file";
  switch (error.code) {
    case "NATIVE_SOURCE_CHANGED":
      return explained(
        error,
        "source_changed",
        `${file} is not what was planned (${error.message}); submit the checkpoint again`,
        { file },
      );
    case "NATIVE_SOURCE_NOT_FOUND":
      return explained(
        error,
        "source_not_found",
        `${file} cannot be read on host ${hostname()} (${error.message}); every worker must be able to read the source`,
        { file, host: hostname() },
      );
    case "NATIVE_NON_FINITE": {
      const { tensor, index } = elementOf(error, plan, resolved);
      return explained(
        error,
        "non_finite_weights",
        `${tensor}${index.length > 0 ? `[${index.join(", ")}]` : ""} is not finite; mend the checkpoint, or submit with install.allow_non_finite`,
        { tensor, index },
      );
    }
    case "NATIVE_NOT_POSITIVE": {
      const { tensor } = elementOf(error, plan, resolved);
      return explained(
        error,
        "checkpoint_invalid",
        `${tensor} is zero or negative; an attention scale must be positive`,
        { tensor },
      );
    }
    case "NATIVE_SCALES_DIFFER": {
      const tensors = [error.details.slice, error.details.with].map(
        (slice = 0) => describeElement(plan.layout, resolved, { slice, row: 0, col: 0 }).tensor,
      );
      return explained(
        error,
        "unsupported_recipe",
        `${tensors.join(" and ")} differ, but what they belong to is fused into one kernel tensor, which has one scale, and ` +
          "as-stored changes no code; submit with dtype bfloat16 and recipe fp8-tensor to quantize it again",
        { tensors },
      );
    }
    case "NATIVE_OUT_OF_MEMORY":
    case "NATIVE_IO":
      return explainHostError(error, what);
    case "NATIVE_NO_DEVICE":
      return explained(error, "device_lost", `${what} on host ${hostname()}: ${error.message}`, { host: hostname() });
    case "NATIVE_INVALID_ARGUMENT":
      return explained(error, "internal", `${what}: ${error.message}`, {});
    case "NATIVE_CANCELLED":
      return explained(error, "cancelled", `${what} was cancelled`, {});
    default:
      return error.code satisfies never;
  }
}

/** An error of work that only reads a file: there are no elements in it. */
export function explainFileError(error: unknown, path: string, what: string): unknown {
  const resolved = { program: { files: [{ path }] }, origins: new Float64Array() };
  return explainNativeError(error, { layout: { checkpointTensors: [] } }, resolved, what);
}

/** What this host could not give, when no element of a checkpoint is to blame. */
export function explainHostError(error: unknown, what: string): unknown {
  if (!isNativeError(error)) return error;
  const host = hostname();
  const details = { host, ...error.details };
  if (error.code === "NATIVE_IO")
    return explained(error, "io_error", `${what} on host ${host}: ${error.message}`, details);
  if (error.code !== "NATIVE_OUT_OF_MEMORY") return error;
  return explained(
    error,
    "out_of_memory",
    `${what} needs memory or disk space that host ${host} does not have: ${error.message}`,
    details,
  );
}

function elementOf(error: NativeError, plan: PlanNames, resolved: ProgramNames) {
  const { slice = 0, row = 0, col = 0 } = error.details;
  return describeElement(plan.layout, resolved, { slice, row, col });
}

function explained(
  cause: NativeError,
  code: LayercastError["code"],
  message: string,
  details: Record<string, unknown>,
): LayercastError {
  return new LayercastError(code, message, details, cause);
}
