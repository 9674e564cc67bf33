// Every error code Layercast can answer with, once. A code is API: it is documented in docs/errors.md, never renamed,
// and a retired one is never used again. `retryable` says whether the same attempt can work if made again unchanged.

interface ErrorRow {
  readonly status: number;
  readonly retryable: boolean;
  readonly title: string;
}

export const ERRORS = {
  // The request
  invalid_request: { status: 400, retryable: false, title: "The request is not valid" },
  unauthorized: { status: 401, retryable: false, title: "A valid bearer token is needed" },
  not_found: { status: 404, retryable: false, title: "There is no such thing" },
  submission_conflict: { status: 409, retryable: false, title: "This submission id was used for another request" },
  weight_version_conflict: {
    status: 409,
    retryable: false,
    title: "The fleet does not hold the expected weight version",
  },
  not_cancellable: { status: 409, retryable: false, title: "The reload can no longer be cancelled" },
  nothing_to_roll_back: { status: 409, retryable: false, title: "That weight version cannot be brought back" },
  not_routable: { status: 409, retryable: true, title: "The fleet must not be routed to" },
  reload_in_progress: { status: 409, retryable: true, title: "Another reload is in progress" },
  request_timeout: { status: 408, retryable: true, title: "The request did not arrive in time" },
  request_aborted: { status: 400, retryable: true, title: "The connection ended before the request had arrived" },
  backpressure: { status: 429, retryable: true, title: "Too much is waiting already" },
  session_closed: { status: 409, retryable: false, title: "The push session takes nothing more" },

  // The checkpoint
  source_not_found: { status: 422, retryable: false, title: "The source does not exist" },
  source_not_allowed: { status: 403, retryable: false, title: "The source lies outside the allowed roots" },
  source_changed: { status: 409, retryable: false, title: "The source changed after the reload was planned" },
  source_gone: { status: 409, retryable: false, title: "The source of the committed weights is gone" },
  checkpoint_invalid: { status: 422, retryable: false, title: "The checkpoint is not valid" },
  unsupported_architecture: { status: 422, retryable: false, title: "The model architecture is not known" },
  unsupported_dtype: { status: 422, retryable: false, title: "The dtype is not supported here" },
  unsupported_recipe: { status: 422, retryable: false, title: "The recipe is not supported here" },
  tensor_missing: { status: 422, retryable: false, title: "A checkpoint tensor is missing" },
  tensor_unexpected: { status: 422, retryable: false, title: "A checkpoint tensor is not expected" },
  shape_mismatch: { status: 422, retryable: false, title: "A checkpoint tensor has the wrong shape" },
  dtype_mismatch: { status: 422, retryable: false, title: "A checkpoint tensor has the wrong dtype" },
  tensor_duplicate: { status: 409, retryable: false, title: "A checkpoint tensor was sent before" },
  indivisible: { status: 422, retryable: false, title: "A dimension does not divide by the tensor-parallel size" },
  non_finite_weights: { status: 422, retryable: false, title: "A checkpoint tensor holds a value that is not finite" },

  // The fleet
  record_lost: { status: 404, retryable: false, title: "Redis has lost the record of the reload" },
  fleet_incomplete: { status: 409, retryable: true, title: "Not all ranks of the fleet are there" },
  fleet_torn: { status: 409, retryable: false, title: "The ranks of the fleet hold different weights" },
  layout_changed: { status: 409, retryable: false, title: "The reload needs another arena layout" },
  out_of_memory: { status: 507, retryable: false, title: "There is not enough memory or disk space" },
  buffers_full: { status: 507, retryable: false, title: "Modules that are not complete hold all of max_buffer_bytes" },
  not_prepared: { status: 409, retryable: true, title: "A rank has not prepared this reload" },
  device_lost: { status: 409, retryable: true, title: "A rank's device was lost" },
  rank_lost: { status: 409, retryable: true, title: "A rank was lost" },
  engine_attached: { status: 409, retryable: false, title: "An attached engine could not follow this reload" },
  engine_starting: { status: 409, retryable: true, title: "An engine is starting, and cannot be stopped yet" },
  engine_running: { status: 409, retryable: true, title: "An engine does not stand still" },
  hook_failed: { status: 502, retryable: true, title: "A pause or resume hook failed" },

  // The way there
  deadline_exceeded: { status: 504, retryable: false, title: "The deadline passed" },
  cancelled: { status: 409, retryable: false, title: "The reload was cancelled" },
  stale_job: { status: 409, retryable: false, title: "The job belongs to a reload that has ended" },
  core_unusable: { status: 500, retryable: false, title: "The native core is missing or cannot be used here" },
  redis_unavailable: { status: 503, retryable: true, title: "Redis does not answer" },
  io_error: { status: 500, retryable: true, title: "Reading or writing failed" },
  internal: { status: 500, retryable: true, title: "Something unexpected happened" },
} as const satisfies Record<string, ErrorRow>;

export type ErrorCode = keyof typeof ERRORS;
export type ErrorDetails = Readonly<Record<string, unknown>>;

/** An error as a value: what is recorded in a reload and sent over the wire. */
export interface ErrorReport {
  code: ErrorCode;
  /** One sentence with the values, and what to do next. */
  message: string;
  retryable: boolean;
  details: ErrorDetails;
}

/** The one error class: a stable code, a sentence with the values and the next step, and the facts as fields. */
export class LayercastError extends Error {
  override readonly name = "LayercastError";
  readonly code: ErrorCode;
  readonly details: ErrorDetails;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.code = code;
    this.details = details;
  }

  get retryable(): boolean {
    return ERRORS[this.code].retryable;
  }
}

/** Any thrown value as an ErrorReport; what is not ours becomes `internal`. */
export function reportError(error: unknown): ErrorReport {
  if (error instanceof LayercastError) {
    return { code: error.code, message: error.message, retryable: error.retryable, details: error.details };
  }
  const message = error instanceof Error ? error.message : String(error);
  return { code: "internal", message, retryable: ERRORS.internal.retryable, details: {} };
}

export function errorFromReport(report: ErrorReport): LayercastError {
  return new LayercastError(report.code, report.message, report.details);
}
