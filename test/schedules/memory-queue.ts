// A durable queue that delivers at least once: jobs with ids that are taken once, flows whose parents wait for their
// children, tries with a delay between them, and a lock that runs out when whoever holds it stands still or is gone.

import { LayercastError } from "../../orchestrator/contract/errors.js";
import {
  CONTROL_QUEUE,
  type ControlJob,
  controlJobId,
  type RankJob,
  type RetryPolicy,
  rankJobId,
  rankQueue,
  retryDelayMs,
} from "../../orchestrator/contract/jobs.js";
import type { Queues, ReloadWork } from "../../orchestrator/queue/queues.js";
import type { Process } from "./world.js";

type ReloadJob = ControlJob | Exclude<RankJob, { kind: "export" }>;

export interface Job {
  id: string;
  queue: string;
  work: ReloadJob;
  retry: RetryPolicy;
  parent: string | null;
  /** Children that are not done. */
  open: number;
  state: "waiting" | "active" | "done" | "failed";
  notBefore: number;
  /** Since when its lock is not renewed. */
  lostAt: number;
  attemptsMade: number;
  /** Counts deliveries; only the last one's outcome counts. */
  delivery: number;
  holder: Process | null;
}

export type Jobs = Map<string, Job>;

const LOCK_MS = 5_000;
const PATIENT: RetryPolicy = { attempts: 100_000, backoffMs: 50 };
const CONTROL: RetryPolicy = { attempts: 8, backoffMs: 100 };

export function copyJobs(jobs: Jobs): Jobs {
  return new Map([...jobs].map(([id, job]) => [id, { ...job }]));
}

/** What a process may send; each is one event, as one script or transaction is in Redis. */
export function senderOf(
  jobs: () => Jobs,
  event: (effect: () => void) => Promise<void>,
): Pick<Queues, "addControl" | "addFlow" | "addSwaps" | "addBuckets" | "removeQueue"> {
  const add = (work: ReloadJob, enqueueing: number, retry: RetryPolicy, more: Partial<Job> = {}) => {
    const isControl = work.kind === "start" || work.kind === "decide";
    const id = isControl ? controlJobId(work, enqueueing) : rankJobId(work, enqueueing);
    const queue = isControl ? CONTROL_QUEUE : rankQueue(work.fleet, work.rank, work.incarnation);
    if (!jobs().has(id)) jobs().set(id, newJob(id, queue, work, retry, more));
    return id;
  };
  return {
    addControl: (job, enqueueing) => event(() => void add(job, enqueueing, CONTROL)),
    addFlow: (work, withDecide) => event(() => addFlow(add, work, withDecide)),
    addSwaps: (work, ranks) =>
      event(() => {
        for (const rank of ranks) add({ kind: "swap", ...work, ...rank, retry: PATIENT }, 0, PATIENT);
      }),
    addBuckets: () => Promise.reject(new Error("schedules push nothing")),
    removeQueue: (name) =>
      event(() => {
        for (const job of jobs().values()) if (job.queue === name) jobs().delete(job.id);
      }),
  };
}

export function newJob(id: string, queue: string, work: ReloadJob, retry: RetryPolicy, more: Partial<Job> = {}): Job {
  const fresh = {
    open: 0,
    state: "waiting",
    notBefore: 0,
    lostAt: 0,
    attemptsMade: 0,
    delivery: 0,
    holder: null,
  } as const;
  return { id, queue, work, retry, parent: null, ...fresh, ...more };
}

function addFlow(
  add: (work: ReloadJob, enqueueing: number, retry: RetryPolicy, more?: Partial<Job>) => string,
  { fleet, reload, epoch, retry, ranks, enqueueing }: ReloadWork,
  withDecide: boolean,
): void {
  const fenced = { fleet, reload, epoch };
  const decide = withDecide ? add({ kind: "decide", ...fenced }, enqueueing, PATIENT, { open: ranks.length }) : null;
  for (const { rank, incarnation, layerJobs } of ranks) {
    const addressed = { ...fenced, rank, incarnation, retry };
    const open = layerJobs.length;
    const parent = add({ kind: "finalize", ...addressed }, enqueueing, retry, { parent: decide, open });
    for (const layers of layerJobs) add({ kind: "layer", ...addressed, layers }, enqueueing, retry, { parent });
  }
}

/** A job of the queue that somebody may take now: waiting, or lost by its holder. */
export function takeable(jobs: Jobs, queue: string, now: number): Job | null {
  for (const job of jobs.values()) {
    if (job.queue !== queue || job.open > 0) continue;
    if (job.state === "waiting" && job.notBefore <= now) return job;
    if (job.state === "active" && lockEnd(job, now) <= now) return job;
  }
  return null;
}

/** When the next lock or delay runs out. */
export function nextDue(jobs: Jobs, now: number): number {
  let next = Number.POSITIVE_INFINITY;
  for (const job of jobs.values()) {
    const due = job.state === "active" ? lockEnd(job, now) : job.notBefore;
    if ((job.state === "active" || job.state === "waiting") && due > now && due < next) next = due;
  }
  return next;
}

/** A holder renews its lock while it runs. */
function lockEnd({ holder, lostAt }: Job, now: number): number {
  const isHeld = holder?.alive && holder.stoppedUntil <= now;
  return isHeld ? Number.POSITIVE_INFINITY : lostAt + LOCK_MS;
}

/** From now on nobody renews these locks. */
export function lose(jobs: Jobs, holder: Process | null, now: number): void {
  for (const job of jobs.values()) {
    if (job.state !== "active" || (holder !== null && job.holder !== holder)) continue;
    job.lostAt = now;
    if (holder === null) job.holder = null;
  }
}

export function take(job: Job, holder: Process): { delivery: number; isLast: boolean } {
  job.state = "active";
  job.holder = holder;
  job.delivery += 1;
  return { delivery: job.delivery, isLast: job.attemptsMade + 1 >= job.retry.attempts };
}

/** The outcome of a delivery, if it still holds the job. `error` null: done. */
export function settle(jobs: Jobs, id: string, delivery: number, error: unknown, now: number, random: number): void {
  const job = jobs.get(id);
  if (job === undefined || job.state !== "active" || job.delivery !== delivery) return;
  job.holder = null;
  if (error === null) {
    job.state = "done";
    const parent = job.parent === null ? undefined : jobs.get(job.parent);
    if (parent !== undefined) parent.open -= 1;
    return;
  }
  job.attemptsMade += 1;
  const isFinal = error instanceof LayercastError && !error.retryable;
  if (isFinal || job.attemptsMade >= job.retry.attempts) failWithParents(jobs, job);
  else {
    job.state = "waiting";
    job.notBefore = now + retryDelayMs(job.retry, job.attemptsMade, random);
  }
}

function failWithParents(jobs: Jobs, job: Job): void {
  job.state = "failed";
  const parent = job.parent === null ? undefined : jobs.get(job.parent);
  if (parent !== undefined && parent.state === "waiting") failWithParents(jobs, parent);
}
