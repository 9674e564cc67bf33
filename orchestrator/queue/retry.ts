// How a job's failure meets the queue; shared by all who take jobs.

import { setTimeout as delay } from "node:timers/promises";
import { DelayedError, type Job, UnrecoverableError } from "bullmq";
import { LayercastError, reportError } from "../contract/errors.js";
import { encodeFailure, retryDelayMs } from "../contract/jobs.js";
import { redisTrouble } from "../host/redis-trouble.js";

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

const REDIS_AWAY_PAUSE_MS = 200;

/**
 * Begins again for as long as Redis does not serve: such a try counts for nothing, for its outcome could not be recorded, and
 * a job that used its tries up that way would leave a reload that nobody fails and nobody goes on with.
 */
async function outlastingRedis<Result>(handle: () => Promise<Result>): Promise<Result> {
  for (;;) {
    try {
      return await handle();
    } catch (error) {
      if (redisTrouble(error) === null) throw error;
      await delay(REDIS_AWAY_PAUSE_MS);
    }
  }
}

/** What a job waits for has not come: it is tried again, and this try does not count. */
export class NotYet extends Error {
  override readonly name = "NotYet";
  readonly againInMs: number;

  constructor(reason: string, againInMs: number) {
    super(reason);
    this.againInMs = againInMs;
  }
}

/** Runs a job's handler; an error that is not retryable becomes the queue's unrecoverable one, here and nowhere else. */
export async function rethrowForQueue<Result>(
  job: Pick<Job, "attemptsMade" | "opts" | "moveToDelayed">,
  handle: (isLast: boolean) => Promise<Result>,
  token?: string,
): Promise<Result> {
  const isLast = job.attemptsMade + 1 >= (job.opts.attempts ?? 1);
  try {
    return await outlastingRedis(() => handle(isLast));
  } catch (error) {
    if (error instanceof NotYet) {
      await job.moveToDelayed(Date.now() + error.againInMs, token);
      throw new DelayedError(error.message);
    }
    const failure = encodeFailure(reportError(error));
    throw error instanceof LayercastError && !error.retryable ? new UnrecoverableError(failure) : new Error(failure);
  }
}
