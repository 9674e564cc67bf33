// What a rank does with a bucket: cuts its slice out of it, writes what can be written, and keeps the rest in buffers until it can.
// One bucket at a time; what has come stays come, so a bucket whose job failed goes on where it stopped.

import { COPY_FIELDS, type NativeCore, type ProgramFile } from "../../native/native.js";
import type { Bucket } from "../../orchestrator/contract/push.js";
import type { Find, ProgramSource } from "../../orchestrator/program/make-program.js";
import { explainFileError } from "../explain-native-error.js";
import { bufferSpan } from "../intake/buffer-places.js";
import { type CellWrite, heldBytes, isDone, matrixAt, noteDTypes, noteHeld } from "../intake/cells.js";
import { type Intake, type IntakeDeps, LAYERS_AT_ONCE, writeLayerRows } from "../intake/intake.js";
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
import { type HeldRows, shareRoom, waitForRoom } from "./buffer-room.js";

/** What taking a bucket works with, besides writing. */
export interface BucketDeps extends IntakeDeps {
  core: NativeCore;
  work: NativeWork;
  report: IntakeDeps["report"] & Pick<ProgressReport, "cut">;
}

/** Settles when the rank has all it needs of the bucket. Throws NotYet while max_buffer_bytes leaves no room for it. */
export function takeBucket(intake: Intake, bucket: Bucket, deps: BucketDeps): Promise<void> {
  const taking = intake.busy.then(() => takeAlone(intake, bucket, deps));
  intake.busy = taking.catch(() => {});
  return taking;
}

async function takeAlone(intake: Intake, bucket: Bucket, deps: BucketDeps): Promise<void> {
  if (intake.taken.has(bucket.sequence)) return;
  noteDTypes(intake.cells, bucket.pieces);
  await writeWhatCanBe(intake, bucket, arrivalsOf(intake.cells, bucket.pieces), deps);
  const held = await holdTheRest(intake, bucket, deps);
  await writeWhatCanBe(intake, bucket, new Map(held.map((index) => [index, []])), deps);
  if (intake.waiting.has(bucket.sequence)) {
    throw waitForRoom(intake.cells, intake.waiting, intake.plan.limits.maxBufferBytes ?? 0);
  }
  intake.taken.add(bucket.sequence);
}

/** Of these matrices, with what the bucket brings of them. */
async function writeWhatCanBe(
  intake: Intake,
  bucket: Bucket,
  matrices: ReadonlyMap<number, readonly Arrival[]>,
  deps: BucketDeps,
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
  const source = rowsInBucket(intake, bucket, deps);
  try {
    await someAtOnce(byLayer, LAYERS_AT_ONCE, ([layer, writes]) =>
      writeLayerRows(intake, layer, { writes, source }, deps),
    );
  } finally {
    // After the last program that reads from buffers, whose file may not change meanwhile.
    const done = new Set(buffered.map(({ index }) => index).filter((index) => isDone(cells, index)));
    await freeBuffersOf(intake, [...done], deps);
  }
}

function rowsInBucket(intake: Intake, bucket: Bucket, deps: BucketDeps): ProgramSource<BucketWrite> {
  return { ...sourceOf(intake, bucket.file, deps), find: (...rows) => findInBucket(intake.cells, ...rows) };
}

/** Rows that have all been cut out of buckets, as buffers are now. */
export function rowsInBuffers(intake: Intake, deps: Pick<BucketDeps, "core">): ProgramSource<CellWrite> {
  const find: Find<CellWrite> = (write, ...rows) => findInBucket(intake.cells, { ...write, arrivals: [] }, ...rows);
  return { ...sourceOf(intake, NO_FILE, deps), find };
}

/** Files in the order of FILES. */
function sourceOf({ buffers, cells, plan }: Intake, bucket: ProgramFile, { core }: Pick<BucketDeps, "core">) {
  const files = [bucket, buffers === null ? NO_FILE : core.describeBuffers(buffers).file];
  return { files, dtypes: cells.dtypes, allowNonFinite: plan.allowNonFinite };
}

const NO_FILE: ProgramFile = { path: "", sizeBytes: 0, mtimeNs: "0", inode: "0" };

async function freeBuffersOf({ buffers, cells }: Intake, indexes: number[], { core }: BucketDeps): Promise<void> {
  if (buffers === null || indexes.length === 0) return;
  await core.freeBuffers(
    buffers,
    indexes.map((index) => bufferSpan(cells, index)),
  );
}

/** Cuts what cannot be written yet into buffers, as far as there is room. Returns the matrices that now have more there. */
async function holdTheRest(intake: Intake, bucket: Bucket, deps: BucketDeps): Promise<number[]> {
  const { cells, waiting } = intake;
  const left: HeldRows[] = [...arrivalsOf(cells, bucket.pieces)].flatMap(([index, arrivals]) =>
    arrivals.map((arrival) => ({ index, arrival })),
  );
  const { maxBufferBytes: limitBytes } = intake.plan.limits;
  const room = shareRoom(cells, left, { heldBytes: heldNow(intake, deps), limitBytes });
  if (room.fitting.length > 0) await hold(intake, bucket, room.fitting, deps);
  if (room.waiting.length > 0) waiting.set(bucket.sequence, room.waiting);
  else waiting.delete(bucket.sequence);
  return [...new Set(room.fitting.map(({ index }) => index))];
}

async function hold(intake: Intake, bucket: Bucket, rows: HeldRows[], deps: BucketDeps): Promise<void> {
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
export function heldNow({ buffers }: Intake, { core }: Pick<BucketDeps, "core">): number {
  return buffers === null ? 0 : core.describeBuffers(buffers).heldBytes;
}
