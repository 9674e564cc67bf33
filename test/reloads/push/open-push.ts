// Pushes that take buckets, on a Redis and in directories of a test file's own: orchestrators without a queue, whose ranks
// register and take buckets as told.

import { randomUUID } from "node:crypto";
import { mkdirSync, mkdtempSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import type { Redis } from "ioredis";
import { pino } from "pino";
import { afterAll, afterEach, beforeAll, beforeEach } from "vitest";
import type { FormatDType } from "../../../orchestrator/contract/dtype.js";
import { KEYS, type RankKey, rankKey } from "../../../orchestrator/contract/jobs.js";
import { type BucketState, ROW_RANGES_KEY } from "../../../orchestrator/contract/push.js";
import type { SubmitRequest } from "../../../orchestrator/contract/reload.js";
import { openFleetStore } from "../../../orchestrator/fleet/fleet-store.js";
import { openPlanStore } from "../../../orchestrator/fleet/plan-store.js";
import { register } from "../../../orchestrator/fleet/rank-transitions.js";
import { openRecordStore } from "../../../orchestrator/fleet/record-store.js";
import { openPushSessions } from "../../../orchestrator/fleet/session-store.js";
import type { FleetState, ReloadRecord } from "../../../orchestrator/fleet/state.js";
import type { ReloadDeps } from "../../../orchestrator/reloads/deps.js";
import { openFollower } from "../../../orchestrator/reloads/follow-reload.js";
import { openHookHosts } from "../../../orchestrator/reloads/hook-hosts.js";
import { makePlan } from "../../../orchestrator/reloads/make-plan.js";
import { acceptBody, acceptFile } from "../../../orchestrator/reloads/push/accept-bucket.js";
import { drivePush, takersOf } from "../../../orchestrator/reloads/push/drive-push.js";
import { openHeaderRoom } from "../../../orchestrator/reloads/push/header-room.js";
import { declaredCheckpoint, loadPushModel } from "../../../orchestrator/reloads/push/push-model.js";
import { openSpool } from "../../../orchestrator/reloads/push/spool.js";
import { openExportReader } from "../../../orchestrator/reloads/read-export.js";
import { sourceWork } from "../../../orchestrator/reloads/sources/source-work.js";
import { startReload } from "../../../orchestrator/reloads/start-reload.js";
import { submitReload } from "../../../orchestrator/reloads/submit-reload.js";
import { openTurns } from "../../../orchestrator/reloads/turns.js";
import { buildSafetensors } from "../../checkpoint/build-safetensors.js";
import { LLAMA, shapesOf } from "../../planner/synthetic-checkpoint.js";
import { usePrivateRedis } from "../../private-redis.js";

export const FLEET = "f";
export const CONFIG = { ...LLAMA, torch_dtype: "bfloat16" };
export const SHAPES = shapesOf(LLAMA);
export const NAMES = Object.keys(SHAPES);
const RANKS: RankKey[] = [rankKey(0, 0), rankKey(0, 1)];
/** Longer than any test. */
const LEASE_MS = 60_000;
const POLICY: SubmitRequest["policy"] = {
  ...{ coalesce: "never", priority: 0, deadline_ms: 60_000, heal_ms: 60_000, attempts: 3, backoff_ms: 5 },
  layers_per_job: "auto",
};

/** A whole tensor, or rows [from, to) of its first dimension. */
export type Sent = string | { name: string; from: number; to: number };

/** A safetensors file of BF16 tensors; another `fill` is other bytes of the same tensors. */
export function bucketBytes(
  what: readonly Sent[],
  { fill = 0, dtype = "BF16" as FormatDType, shapes = SHAPES, note = "" } = {},
): Uint8Array {
  const ranges: Record<string, { offset: number[]; global_shape: number[] }> = {};
  const tensors = what.map((one) => {
    const { name, ...rows } = typeof one === "string" ? { name: one } : one;
    const [height = 1, ...rest] = shapes[name] ?? [];
    const { from, to } = { from: 0, to: height, ...rows };
    if (typeof one !== "string")
      ranges[name] = { offset: [from, ...rest.map(() => 0)], global_shape: [height, ...rest] };
    const shape = [to - from, ...rest];
    const elements = shape.reduce((product, size) => product * size, 1);
    const bytes = new Uint8Array(elements * (dtype === "F32" ? 4 : 2)).map(
      (_, at) => (at * 7 + from * 13 + fill) % 251,
    );
    return [name, { dtype, shape, bytes }] as const;
  });
  const metadata = { [ROW_RANGES_KEY]: JSON.stringify(ranges), ...(note === "" ? {} : { note }) };
  return buildSafetensors(Object.fromEntries(tensors), metadata);
}

/** One push, seen by one of its orchestrators. */
export interface TestPush {
  readonly id: string;
  readonly deps: ReloadDeps;
  /** Jobs that ranks were sent: "incarnation sequence-delivery". */
  readonly jobs: string[];
  /** Writes a bucket's file. */
  write(bytes: Uint8Array): string;
  /** Sends a file of these tensors; its sequence. */
  send(...what: Sent[]): Promise<number>;
  post(path: string, immutable?: boolean): Promise<number>;
  put(number: number, bytes: Uint8Array, sizeBytes?: number): Promise<number>;
  /** The rank's current incarnation has what it needs of the bucket. */
  take(sequence: number, rank?: number): Promise<void>;
  takeByAll(sequence: number): Promise<void>;
  /** A new life of the rank. */
  restart(rank: number): Promise<void>;
  tend(): Promise<void>;
  /** Waits for what is being copied into the spool. */
  spooled(): Promise<void>;
  state(sequence: number): Promise<BucketState>;
  /** Payloads of the events of that name. */
  events(name: string): Promise<unknown[]>;
  record(): Promise<ReloadRecord>;
  fleet(): Promise<FleetState>;
  /** All that is known of the session but when it was touched. */
  everything(): Promise<unknown>;
  /** The same push, seen by another orchestrator with a connection of its own. */
  elsewhere(): Promise<TestPush>;
}

export interface PushWorld {
  readonly redis: Redis;
  readonly sources: string;
  readonly spoolDirectory: string;
  /** A push of a fleet of two ranks, that is loading. */
  open(source?: Partial<SubmitRequest["source"]>, more?: Partial<SubmitRequest>): Promise<TestPush>;
  /** One that is submitted to whatever fleet there is. */
  submit(source?: Partial<SubmitRequest["source"]>, more?: Partial<SubmitRequest>): Promise<TestPush>;
  start(push: TestPush): Promise<void>;
}

/** Redis and both directories are empty before each law. */
export function usePushes(name: string): PushWorld {
  let redis: Redis;
  let directory: string;
  const connections: Redis[] = [];
  usePrivateRedis(name, (opened) => {
    redis = opened;
  });
  beforeAll(() => {
    directory = realpathSync(mkdtempSync(join(tmpdir(), `layercast-${name}-`)));
  });
  beforeEach(() => {
    rmSync(directory, { recursive: true, force: true });
    mkdirSync(world.sources, { recursive: true });
  });
  afterEach(() => {
    for (const connection of connections.splice(0)) connection.disconnect();
  });
  afterAll(() => rmSync(directory, { recursive: true, force: true }));

  function connect(): Redis {
    const connection = redis.duplicate();
    connections.push(connection);
    return connection;
  }

  const world: PushWorld = {
    get redis() {
      return redis;
    },
    get sources() {
      return join(directory, "sources");
    },
    get spoolDirectory() {
      return join(directory, "spool");
    },
    async open(source, more) {
      const push = await world.submit(source, more);
      for (const rank of RANKS.keys()) await push.restart(rank);
      await world.start(push);
      return push;
    },
    async submit(source = {}, more = {}) {
      const jobs: string[] = [];
      const deps = await orchestrator(world, connect, jobs);
      const { id } = await submitReload(deps, requestOf(source, more));
      return pushOf(world, connect, deps, id, jobs);
    },
    async start({ id, deps, record }) {
      await startReload(deps, FLEET, id, (await record()).epoch ?? 0);
    },
  };
  return world;
}

async function orchestrator(world: PushWorld, connect: () => Redis, jobs: string[]): Promise<ReloadDeps> {
  const redis = connect();
  const follower = openFollower(connect());
  await follower.listen();
  const queues: Pick<ReloadDeps["queues"], "addBuckets" | "addFlow"> = {
    async addBuckets(_work, { incarnation }, deliveries) {
      for (const { sequence, delivery } of deliveries) jobs.push(`${incarnation} ${sequence}-${delivery}`);
    },
    async addFlow({ ranks }) {
      for (const { incarnation } of ranks) jobs.push(`${incarnation} finalize`);
    },
  };
  return {
    name: randomUUID(),
    redis,
    store: openFleetStore(redis),
    plans: openPlanStore(redis),
    records: openRecordStore(redis),
    makePlan: async (request, state, reload) =>
      makePlan(request, state, declaredCheckpoint(await loadPushModel(redis, reload))),
    disk: { atOnce: async () => true, wait: async () => {} },
    sessions: openPushSessions(redis),
    spool: openSpool(world.spoolDirectory),
    spooling: new Map(),
    submitting: openTurns(10_000),
    follower,
    sources: sourceWork([world.sources]),
    exports: openExportReader({ redis, connect, name: "" }),
    swapsSent: new Map(),
    log: pino({ level: "silent" }),
    queues: queues as ReloadDeps["queues"],
    hookHosts: openHookHosts([]),
    headerRoom: openHeaderRoom(),
    callEngines: () => Promise.reject(new Error("there are no engines")),
  };
}

function requestOf(source: Partial<SubmitRequest["source"]>, more: Partial<SubmitRequest>): SubmitRequest {
  return {
    fleet: FLEET,
    source: { kind: "push", config: CONFIG, ...source },
    dtype: "auto",
    recipe: { scheme: "none", ignore: [] },
    install: { mode: "staged", staging: "auto", allow_new_layout: false, allow_non_finite: false },
    policy: POLICY,
    metadata: {},
    ...more,
  };
}

function pushOf(world: PushWorld, connect: () => Redis, deps: ReloadDeps, id: string, jobs: string[]): TestPush {
  const { store, sessions, redis } = deps;
  async function fleet(): Promise<FleetState> {
    const known = await store.read(FLEET);
    if (known === null) throw new Error("there is no fleet");
    return known.state;
  }
  const push: TestPush = {
    id,
    deps,
    jobs,
    fleet,
    write(bytes) {
      const path = join(world.sources, `${randomUUID()}.safetensors`);
      writeFileSync(path, bytes);
      return path;
    },
    send: (...what) => push.post(push.write(bucketBytes(what))),
    post: (uri, immutable = false) => acceptFile(deps, id, { uri, immutable }),
    put: (number, bytes, sizeBytes = bytes.byteLength) =>
      acceptBody(deps, id, number, Readable.from(inChunks(bytes)), sizeBytes),
    async take(sequence, rank = 0) {
      const takers = takersOf(await fleet());
      await sessions.taken(id, sequence, takers[rank] ?? null, takers);
    },
    async takeByAll(sequence) {
      for (const rank of RANKS.keys()) await push.take(sequence, rank);
    },
    restart: (rank) => joinAnew(deps, rank),
    tend: async () => drivePush(deps, await fleet()),
    async spooled() {
      await Promise.all(deps.spooling.values());
    },
    state: async (sequence) => (await sessions.bucket(id, sequence)).state,
    async events(name) {
      const entries = await redis.xrange(KEYS.events(id), "-", "+");
      return entries.filter(([, fields]) => fields[1] === name).map(([, fields]) => JSON.parse(fields[3] ?? ""));
    },
    record: async () => (await deps.records.read(id)).record,
    async everything() {
      const keys = [KEYS.session(id), KEYS.sessionRows(id), KEYS.sessionTaken(id)];
      const [session, ...others] = await Promise.all(keys.map((key) => redis.hgetall(key)));
      return [{ ...session, touched: "" }, ...others, await redis.xrange(KEYS.events(id), "-", "+")];
    },
    elsewhere: async () => pushOf(world, connect, await orchestrator(world, connect, jobs), id, jobs),
  };
  return push;
}

/** So that a header comes in several of them. */
function* inChunks(bytes: Uint8Array): Generator<Buffer> {
  const chunk = 1_000;
  for (let at = 0; at < bytes.byteLength; at += chunk) yield Buffer.from(bytes.subarray(at, at + chunk));
}

async function joinAnew({ store }: ReloadDeps, rank: number): Promise<void> {
  const key = RANKS[rank] ?? rankKey(0, rank);
  const incarnation = `${rank}.${randomUUID().slice(0, 8)}`;
  const place = { host: "h", pid: 1, device: "cpu", arenaPath: "", controlPath: "", trouble: null, undo: null };
  const claim = { lock: key, takeOver: false, engines: null };
  const topology = { replicas: 1, tensorParallelSize: RANKS.length, expertParallel: false };
  const live = { state: "empty" as const, generation: 0, held: null };
  const registration = { key, replica: 0, rank, incarnation, live, highestEpoch: 0, ...place, ...topology, ...claim };
  await store.transact(FLEET, (draft, context, beside) => {
    beside.lease = { rank: key, incarnation, ttlMs: LEASE_MS };
    register(draft, registration, context);
  });
}
