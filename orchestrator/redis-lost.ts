// Tells errors that mean "Redis does not serve now" (unreachable, read-only, full) from all others, whichever client threw them.

const CONNECTION_CODES = new Set([
  "ECONNREFUSED",
  "ECONNRESET",
  "EPIPE",
  "ETIMEDOUT",
  "EHOSTUNREACH",
  "ENOTFOUND",
  "EAI_AGAIN",
]);

/** Clients give no code for these. */
const MESSAGES = [
  /^Connection is closed/,
  /^Stream isn't writeable/,
  /^Command timed out/,
  /^Reached the max retries per request limit/,
  /^LOADING /,
  /^READONLY /,
  /^OOM /,
  /^MISCONF /,
  /^MASTERDOWN /,
  /^CLUSTERDOWN /,
];

export function isRedisLost(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  if (error.name === "MaxRetriesPerRequestError") return true;
  const { code, syscall } = error as NodeJS.ErrnoException;
  // A missing unix socket is ENOENT, which only `connect` makes a connection error.
  if (code !== undefined && (CONNECTION_CODES.has(code) || syscall === "connect")) return true;
  return MESSAGES.some((pattern) => pattern.test(error.message));
}
