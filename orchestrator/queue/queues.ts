// BullMQ, kept in one place: the control queue that all orchestrators share, a queue for each incarnation of a rank, and
// one flow a reload, `decide <- finalize[rank] <- layer[rank][i]`, whose parents wait for their children.

import { setTimeout as delay } from "node:timers/promises";
import { type FlowJob, FlowProducer, type Job, Queue, Worker } from "bullmq";
import type { Redis } from "ioredis";
import { errorFromReport, LayercastError } from "../contract/errors.js";
import {
  CONTROL_QUEUE,
  type ControlJob,
  controlJobId,
  decodeFailure,
  type ExportResult,
  KEY_PREFIX,
  type RankJob,
  type RankKey,
  type RetryPolicy,
  rankJobId,
  rankQueue,
} from "../contract/jobs.js";
import { openConsumer, openLasting, readyInTime } from "./open-lasting.js";
import { backoffStrategy, rethrowForQueue } from "./retry.js";

/** What is to be done by one incarnation of a rank in a reload. */
export interface RankWork {
  rank: RankKey;
  incarnation: string;
  /** Layer indexes, one list a job; none when finalize does it all. */
  layerJobs: number[][];
}

export interface ReloadWork {
  fleet: string;
  reload: string;
  epoch: number;
  retry: RetryPolicy;
  ranks: RankWork[];
  /** The number of this enqueueing, part of all job ids. */
  enqueueing: number;
}

export interface Queues {
  addControl(job: ControlJob, enqueueing: number): Promise<void>;
  /** The whole flow; or, when only some ranks must begin again, their part of it without the `decide` at its top. */
  addFlow(work: ReloadWork, withDecide: boolean): Promise<void>;
  /** A push's buckets for one rank: plain jobs, which nothing waits for. */
  addBuckets(
    work: Pick<ReloadWork, "fleet" | "reload" | "epoch" | "retry">,
    rank: { rank: RankKey; incarnation: string },
    deliveries: readonly { sequence: number; delivery: number }[],
  ): Promise<void>;
  addSwaps(
    work: Pick<ReloadWork, "fleet" | "reload" | "epoch">,
    ranks: { rank: RankKey; incarnation: string }[],
  ): Promise<void>;
  runExport(job: RankJob & { kind: "export" }, timeoutMs: number): Promise<ExportResult>;
  /** Takes control jobs until closed; `isLast` when the queue will not try again. */
  consumeControl(handle: (job: ControlJob, isLast: boolean) => Promise<void>): Promise<void>;
  removeQueue(name: string): Promise<void>;
  close(): Promise<void>;
}

const CONTROL_RETRY: RetryPolicy = { attempts: 8, backoffMs: 100 };
/** Until the reload is decided or ended, whichever comes first: its deadline bounds this. */
const PATIENT_RETRY: RetryPolicy = { attempts: 100_000, backoffMs: 50 };
const KEPT = { removeOnComplete: { count: 200 }, removeOnFail: { count: 200 } } as const;
const CONTROL_LOCK_MS = 2_000;
const CONTROL_CONCURRENCY = 8;

export function openQueues(connection: Redis, patientConnection: Redis, onError: (error: Error) => void): Queues {
  const shared = { connection, prefix: KEY_PREFIX };
  const control = openLasting(() => new Queue<ControlJob>(CONTROL_QUEUE, shared).on("error", onError));
  const flows = openLasting(() => new FlowProducer(shared).on("error", onError));
  const consumers: Worker[] = [];

  async function withQueue<Result>(name: string, use: (queue: Queue) => Promise<Result>): Promise<Result> {
    const queue = new Queue(name, shared);
    queue.on("error", onError);
    try {
      await readyInTime(queue);
      return await use(queue);
    } finally {
      await queue.close();
    }
  }

  return {
    async addControl(job, enqueueing) {
      await (await control.get()).add(job.kind, job, {
        jobId: controlJobId(job, enqueueing),
        ...retryOptions(CONTROL_RETRY),
      });
    },
    async addFlow(work, withDecide) {
      const children = work.ranks.map((rank) => finalizeNode(work, rank));
      const producer = await flows.get();
      if (withDecide) await producer.add(decideNode(work, children));
      else await producer.addBulk(children);
    },
    async addBuckets({ fleet, reload, epoch, retry }, { rank, incarnation }, deliveries) {
      const addressed = { fleet, reload, epoch, rank, incarnation, retry };
      await (await flows.get()).addBulk(deliveries.map((one) => rankNode({ ...addressed, kind: "bucket", ...one }, 0)));
    },
    async addSwaps({ fleet, reload, epoch }, ranks) {
      const nodes = ranks.map(({ rank, incarnation }) =>
        rankNode({ kind: "swap", fleet, reload, epoch, rank, incarnation, retry: PATIENT_RETRY }, 0),
      );
      await (await flows.get()).addBulk(nodes);
    },
    runExport: (job, timeoutMs) =>
      withQueue(rankQueue(job.fleet, job.rank, job.incarnation), async (queue) => {
        const added = await queue.add("export", job, KEPT);
        return exportResult(queue, added.id ?? "", job, timeoutMs);
      }),
    async consumeControl(handle) {
      const options = {
        connection: patientConnection,
        prefix: KEY_PREFIX,
        concurrency: CONTROL_CONCURRENCY,
        lockDuration: CONTROL_LOCK_MS,
        stalledInterval: CONTROL_LOCK_MS / 2,
        maxStalledCount: 100,
        settings: { backoffStrategy },
      };
      const take = (job: Job<ControlJob>, token?: string) =>
        rethrowForQueue(job, (isLast) => handle(job.data, isLast), token);
      consumers.push(
        await openConsumer(() => new Worker<ControlJob>(CONTROL_QUEUE, take, options).on("error", onError)),
      );
    },
    removeQueue: (name) => withQueue(name, (queue) => queue.obliterate({ force: true })),
    async close() {
      await Promise.all(consumers.map((worker) => worker.close()));
      await Promise.all([control.close(), flows.close()]);
    },
  };
}

/** Asks until the job has ended: an event stream would need a connection of its own for each export. */
async function exportResult(
  queue: Queue,
  id: string,
  { fleet, rank }: Pick<RankJob, "fleet" | "rank">,
  timeoutMs: number,
): Promise<ExportResult> {
  const deadline = performance.now() + timeoutMs;
  while (performance.now() < deadline) {
    const state = await queue.getJobState(id);
    const job = await queue.getJob(id); // after its state, so that an ended one has its result
    if (job === undefined) {
      throw new LayercastError(
        "rank_lost",
        `Rank ${rank} of fleet ${fleet} was lost before it had exported: export it again once it is back.`,
        { fleet, rank },
      );
    }
    if (state === "completed") return job.returnvalue as ExportResult;
    if (state === "failed") throw errorFromReport(decodeFailure(job.failedReason));
    await delay(RESULT_POLL_MS);
  }
  await queue.remove(id).catch(() => 0); // one that is at work already ends by itself, and its file by its time
  throw new LayercastError(
    "deadline_exceeded",
    `The export of rank ${rank} of fleet ${fleet} took longer than ${timeoutMs} ms.`,
    { fleet, rank, timeoutMs },
  );
}

const RESULT_POLL_MS = 10;

function decideNode(work: ReloadWork, children: FlowJob[]) {
  const job: ControlJob = { kind: "decide", fleet: work.fleet, reload: work.reload, epoch: work.epoch };
  const opts = { jobId: controlJobId(job, work.enqueueing), ...retryOptions(PATIENT_RETRY) };
  return { name: job.kind, queueName: CONTROL_QUEUE, prefix: KEY_PREFIX, data: job, opts, children };
}

function finalizeNode(work: ReloadWork, { rank, incarnation, layerJobs }: RankWork): FlowJob {
  const addressed = { fleet: work.fleet, reload: work.reload, epoch: work.epoch, rank, incarnation, retry: work.retry };
  const children = layerJobs.map((layers) => rankNode({ ...addressed, kind: "layer", layers }, work.enqueueing));
  return { ...rankNode({ ...addressed, kind: "finalize" }, work.enqueueing), children };
}

function rankNode(job: Exclude<RankJob, { kind: "export" }>, enqueueing: number): FlowJob {
  return {
    name: job.kind,
    queueName: rankQueue(job.fleet, job.rank, job.incarnation),
    prefix: KEY_PREFIX,
    data: job,
    opts: { jobId: rankJobId(job, enqueueing), failParentOnFailure: true, ...retryOptions(job.retry) },
  };
}

function retryOptions(retry: RetryPolicy) {
  return { attempts: retry.attempts, backoff: { type: "custom", delay: retry.backoffMs }, ...KEPT };
}
