// How a job's failure meets the queue; shared by all who take jobs.

import { type Job, UnrecoverableError } from "bullmq";
import { LayercastError, reportError } from "../contract/errors.js";
import { encodeFailure, retryDelayMs } from "../contract/jobs.js";

/** BullMQ keeps the strategy with whoever takes the job; orchestrators and workers share this one. */
export function backoffStrategy(
  attemptsMade: number,
  _type?: string,
  _error?: Error,
  job?: { opts?: Job["opts"] },
): number {
  const { backoff, attempts } = job?.opts ?? {};
  const backoffMs = typeof backoff === "object" ? (backoff.delay ?? 0) : 0;
  return retryDelayMs({ attempts: attempts ?? 1, backoffMs }, attemptsMade, Math.random());
}

/** Runs a job's handler; an error that is not retryable becomes the queue's unrecoverable one, here and nowhere else. */
export async function throwingForTheQueue<Result>(
  job: Pick<Job, "attemptsMade" | "opts">,
  handle: (isLast: boolean) => Promise<Result>,
): Promise<Result> {
  const isLast = job.attemptsMade + 1 >= (job.opts.attempts ?? 1);
  try {
    return await handle(isLast);
  } catch (error) {
    const failure = encodeFailure(reportError(error));
    throw error instanceof LayercastError && !error.retryable ? new UnrecoverableError(failure) : new Error(failure);
  }
}
