// What a rank does with a bucket: cuts its slice out of it, writes what can be written, and keeps the rest in buffers until it can.
// One bucket at a time; what has come stays come, so a bucket whose job failed goes on where it stopped.

import { type Buffers, COPY_FIELDS, type NativeCore, type ProgramFile, type Span } from "../../native/native.js";
import type { Bucket } from "../../orchestrator/contract/push.js";
import { makeProgram, type ProgramSource, type ResolvedProgram } from "../../orchestrator/planner/make-program.js";
import type { RankMatrices } from "../../orchestrator/planner/rank-matrices.js";
import type { LoadedPlan } from "../../orchestrator/reloads/plan-store.js";
import { explainFileError } from "../explain-native-error.js";
import { addDigests, digestFromHex, type Owner } from "../ledger.js";
import { callDeadlineMs, type NativeWork } from "../native-work.js";
import type { ProgressReport } from "../report.js";
import { someAtOnce } from "../some-at-once.js";
import {
  type Arrival,
  arrivalsOf,
  type BucketWrite,
  bucketWrite,
  copyOf,
  findInBucket,
  writableRows,
} from "./arrivals.js";
import { bufferSpan } from "./buffer-places.js";
import { type HeldRows, shareRoom, type WaitingBuckets, waitForRoom } from "./buffer-room.js";
import { type Cells, heldBytes, isDone, matrixAt, newCells, noteDTypes, noteHeld, noteStreamed } from "./cells.js";

/** Of one push, while this rank is filling its staging. */
export interface Intake {
  readonly owner: Owner;
  readonly plan: LoadedPlan;
  readonly cells: Cells;
  /** Sequences of the buckets that this rank has all of. */
  readonly taken: Set<number>;
  /** Of those, which the session knows of. */
  readonly told: Set<number>;
  /** Of everything written so far. */
  digest: bigint;
  buffers: Buffers | null;
  /** Measured, the most that they held. */
  peakBytes: number;
  /** The fleet has been told that tensors come out of order. */
  warned: boolean;
  /** Buckets that found no room. */
  readonly waiting: WaitingBuckets;
  /** What was written, once all is: null: the whole arena. */
  last: { spans: Span[] | null } | null;
  /** The one that is being taken, if any; never rejects. */
  busy: Promise<void>;
}

/** What an intake works with. */
export interface IntakeDeps {
  core: NativeCore;
  work: NativeWork;
  /** Runs a program while staging is open for the owner. */
  run(owner: Owner, plan: LoadedPlan, resolved: ResolvedProgram, what: string): ReturnType<NativeCore["runLayer"]>;
  report: ProgressReport;
}

export function openIntake(owner: Owner, plan: LoadedPlan, matrices: RankMatrices): Intake {
  const shapes = plan.layout.checkpointTensors.map(({ shape }) => shape);
  return {
    owner,
    plan,
    cells: newCells(matrices, plan.source.dtype, shapes),
    taken: new Set(),
    told: new Set(),
    digest: 0n,
    buffers: null,
    peakBytes: 0,
    warned: false,
    waiting: new Map(),
    last: null,
    busy: Promise.resolve(),
  };
}

/** Settles when the rank has all it needs of the bucket. Throws NotYet while max_buffer_bytes leaves no room for it. */
export function takeBucket(intake: Intake, bucket: Bucket, deps: IntakeDeps): Promise<void> {
  const taking = intake.busy.then(() => takeAlone(intake, bucket, deps));
  intake.busy = taking.catch(() => {});
  return taking;
}

async function takeAlone(intake: Intake, bucket: Bucket, deps: IntakeDeps): Promise<void> {
  if (intake.taken.has(bucket.sequence)) return;
  noteDTypes(intake.cells, bucket.pieces);
  await writeWhatCanBe(intake, bucket, arrivalsOf(intake.cells, bucket.pieces), deps);
  const held = await holdTheRest(intake, bucket, deps);
  await writeWhatCanBe(intake, bucket, new Map(held.map((index) => [index, []])), deps);
  if (intake.waiting.has(bucket.sequence)) {
    throw waitForRoom(intake.cells, intake.waiting, intake.plan.push?.maxBufferBytes ?? 0);
  }
  intake.taken.add(bucket.sequence);
}

/** So many layers are with the core at once, so that it does not idle between them. */
const LAYERS_AT_ONCE = 2;

/** Of these matrices, with what the bucket brings of them. */
async function writeWhatCanBe(
  intake: Intake,
  bucket: Bucket,
  matrices: ReadonlyMap<number, readonly Arrival[]>,
  deps: IntakeDeps,
): Promise<void> {
  const { cells } = intake;
  const byLayer = new Map<number, BucketWrite[]>();
  for (const [index, arrivals] of matrices) {
    const { layer, kernel } = matrixAt(cells, index).geometry;
    if (kernel.phase === "finalize") continue; // attention waits for all others
    const writes = writableRows(cells, index, arrivals).map((range) => bucketWrite(cells, index, range, arrivals));
    const known = byLayer.get(layer);
    if (known !== undefined) known.push(...writes);
    else if (writes.length > 0) byLayer.set(layer, writes);
  }
  const buffered = [...byLayer.values()].flat().filter(({ index }) => heldBytes(cells, index) > 0);
  const source = bucketSource(intake, bucket, deps);
  try {
    await someAtOnce(byLayer, LAYERS_AT_ONCE, ([layer, writes]) => runLayer(intake, layer, writes, source, deps));
  } finally {
    // After the last program that reads from buffers, whose file may not change meanwhile.
    const done = new Set(buffered.map(({ index }) => index).filter((index) => isDone(cells, index)));
    await freeBuffersOf(intake, [...done], deps);
  }
}

async function runLayer(
  intake: Intake,
  layer: number,
  writes: readonly BucketWrite[],
  source: ProgramSource<BucketWrite>,
  deps: IntakeDeps,
): Promise<void> {
  const { cells, plan, owner } = intake;
  const resolved = makeProgram(writes, [], source);
  const report = await deps.run(owner, plan, resolved, `layer ${plan.layout.layers[layer]?.name}`);
  intake.digest = addDigests(intake.digest, digestFromHex(report.digest));
  for (const write of writes) noteStreamed(cells, write.index, write);
  deps.report.layerWritten(report);
  if (cells.unwritten[layer] === 0) deps.report.layerComplete(layer);
}

/** Rows that lie in a bucket and in buffers, as the latter are now; null: in buffers alone. */
export function bucketSource(
  { buffers, cells, plan }: Intake,
  bucket: Bucket | null,
  { core }: Pick<IntakeDeps, "core">,
): ProgramSource<BucketWrite> {
  const nothing: ProgramFile = { path: "", sizeBytes: 0, mtimeNs: "0", inode: "0" };
  return {
    files: [bucket?.file ?? nothing, buffers === null ? nothing : core.describeBuffers(buffers).file],
    dtypes: cells.dtypes,
    allowNonFinite: plan.allowNonFinite,
    find: (write, window, from, to) => findInBucket(cells, write, window, from, to),
  };
}

async function freeBuffersOf({ buffers, cells }: Intake, indexes: number[], { core }: IntakeDeps): Promise<void> {
  if (buffers === null || indexes.length === 0) return;
  await core.freeBuffers(
    buffers,
    indexes.map((index) => bufferSpan(cells, index)),
  );
}

/** Cuts what cannot be written yet into buffers, as far as there is room. Returns the matrices that now have more there. */
async function holdTheRest(intake: Intake, bucket: Bucket, deps: IntakeDeps): Promise<number[]> {
  const { cells, waiting } = intake;
  const left: HeldRows[] = [...arrivalsOf(cells, bucket.pieces)].flatMap(([index, arrivals]) =>
    arrivals.map((arrival) => ({ index, arrival })),
  );
  const limitBytes = intake.plan.push?.maxBufferBytes ?? null;
  const room = shareRoom(cells, left, { heldBytes: heldNow(intake, deps), limitBytes });
  if (room.fitting.length > 0) await hold(intake, bucket, room.fitting, deps);
  if (room.waiting.length > 0) waiting.set(bucket.sequence, room.waiting);
  else waiting.delete(bucket.sequence);
  return [...new Set(room.fitting.map(({ index }) => index))];
}

async function hold(intake: Intake, bucket: Bucket, rows: HeldRows[], deps: IntakeDeps): Promise<void> {
  const { cells } = intake;
  const { core, work, report } = deps;
  intake.buffers ??= core.openBuffers(cells.buffers.bytes);
  const { buffers } = intake;
  const copies = rows.map(({ index, arrival }) => ({ file: 0, ...copyOf(cells, index, arrival) }));
  const table = Float64Array.from(copies.flatMap((copy) => COPY_FIELDS.map((field) => copy[field])));
  const what = `bucket ${bucket.number}`;
  const bytes = copies.reduce((sum, { rows: count, rowBytes }) => sum + count * rowBytes, 0);
  const filled = await work
    .run(what, callDeadlineMs(bytes), (cancel) => core.fillBuffers(buffers, [bucket.file], table, cancel))
    .catch((error: unknown) => {
      throw explainFileError(error, bucket.file.path, what);
    });
  for (const { index, arrival } of rows) noteHeld(cells, index, arrival.window, arrival);
  intake.peakBytes = Math.max(intake.peakBytes, heldNow(intake, deps));
  report.cut(filled);
}

/** Measured: the memory that buffers hold. */
export function heldNow({ buffers }: Intake, { core }: Pick<IntakeDeps, "core">): number {
  return buffers === null ? 0 : core.describeBuffers(buffers).heldBytes;
}
