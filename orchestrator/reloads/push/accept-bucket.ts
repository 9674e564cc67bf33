// A bucket that a trainer sends: its header is held against the plan, it gets its place in the session, and its jobs go out. The
// same bucket sent again is the same bucket; anything else that brings rows a second time is refused by name.

import type { Readable } from "node:stream";
import { describeFile } from "../../checkpoint/checkpoint-file.js";
import type { SafetensorsHeader } from "../../checkpoint/safetensors-header.js";
import { countOf } from "../../contract/count-of.js";
import { LayercastError } from "../../contract/errors.js";
import type { CheckpointFile, SourceWarning } from "../../contract/plan.js";
import type { BucketRequest } from "../../contract/push.js";
import { warn } from "../../fleet/reload-transitions.js";
import type { Accepted } from "../../fleet/session-store.js";
import { faultPoint } from "../../host/fault-point.js";
import type { ReloadDeps } from "../deps.js";
import { readHeaderFirst } from "./bucket-body.js";
import { type HeldPieces, piecesOf } from "./bucket-pieces.js";
import { sendBuckets } from "./drive-push.js";
import { closed, type OpenPush, pushOf } from "./open-push.js";

/** A file that the trainer has written. Returns the bucket's sequence. */
export async function acceptFile(deps: ReloadDeps, reload: string, { uri, immutable }: BucketRequest): Promise<number> {
  const push = await pushOf(deps, reload);
  const path = await deps.sources.resolve(uri);
  const giveBack = deps.headerRoom.take(await deps.sources.headerBytes(path), path);
  try {
    const { file, header } = await deps.sources.readFile(path);
    const held = piecesOf(header, push.expected, path);
    const incoming: IncomingBucket = { number: null, file, header, held, immutable, spooled: false };
    const sequence = await settle(deps, push, incoming, await offer(deps, push, incoming));
    await sendBucketsNow(deps, push, held.warning);
    return sequence;
  } finally {
    giveBack();
  }
}

/** A body: it is refused by name before it has come whole, and what has come of a refused one is given up. */
export async function acceptBody(
  deps: ReloadDeps,
  reload: string,
  number: number,
  body: Readable,
  sizeBytes: number,
): Promise<number> {
  const push = await pushOf(deps, reload);
  await requireRoom(deps, push, number);
  const name = `bucket ${number}`;
  let giveBack = () => {};
  const takeRoom = (headerBytes: number) => {
    giveBack = deps.headerRoom.take(headerBytes, name);
  };
  try {
    const incoming = await readHeaderFirst(body, sizeBytes, name, takeRoom);
    return await receiveBody(deps, push, { ...incoming, number, sizeBytes });
  } finally {
    giveBack();
  }
}

interface IncomingBody {
  number: number;
  header: SafetensorsHeader;
  whole: AsyncIterable<Uint8Array>;
  sizeBytes: number;
}

async function receiveBody(deps: ReloadDeps, push: OpenPush, { number, header, whole, sizeBytes }: IncomingBody) {
  const reload = push.record.id;
  const held = piecesOf(header, push.expected, `bucket ${number}`);
  const path = await deps.spool.receive(reload, touchWhileReading(deps, reload, whole), sizeBytes);
  const file = await describeFile(path);
  const incoming: IncomingBucket = { number, file, header, held, immutable: true, spooled: true };
  // If this throws, the session may have the bucket all the same: then its file must stay, and goes with the reload.
  const accepted = await offer(deps, push, incoming);
  const isTaken = accepted.kind === "accepted" || accepted.kind === "again";
  const sequence = await settle(deps, push, incoming, accepted).finally(() =>
    isTaken ? null : deps.spool.giveUp(path),
  );
  await sendBucketsNow(deps, push, held.warning);
  return sequence;
}

/** A bucket that has arrived and has no place yet. */
interface IncomingBucket {
  number: number | null;
  file: CheckpointFile;
  header: SafetensorsHeader;
  held: HeldPieces;
  immutable: boolean;
  spooled: boolean;
}

async function offer({ sessions }: ReloadDeps, push: OpenPush, incoming: IncomingBucket): Promise<Accepted> {
  const { number, file, immutable, spooled } = incoming;
  const { warning: _, ...held } = incoming.held;
  const accepted = await sessions.accept(
    push.record.id,
    { number, file, immutable, spooled, ...held },
    push.settings.maxPendingBuckets,
  );
  await faultPoint("orchestrator.bucket_accepted");
  return accepted;
}

/** The sequence that the bucket has, also when it was sent before. Throws the reason when it is refused. */
async function settle(deps: ReloadDeps, push: OpenPush, incoming: IncomingBucket, accepted: Accepted): Promise<number> {
  switch (accepted.kind) {
    case "accepted":
    case "again":
      return accepted.sequence;
    case "known":
      return sameAsBefore(deps, push, incoming, accepted.sequence);
    case "other_number":
      throw await duplicate(deps, push, incoming, accepted.sequence);
    case "number_taken":
      throw numberTaken(push, incoming);
    case "overlap":
      throw await duplicate(
        deps,
        push,
        incoming,
        accepted.sequence,
        push.expected.layout.checkpointTensors[accepted.tensor]?.name,
      );
    case "other_dtype":
      throw await otherDType(deps, push, incoming, accepted);
    case "finished":
      throw closed(push.record);
    case "full":
      await deps.sessions.touch(push.record.id); // who is told to wait is there
      throw full(push);
    default:
      return accepted satisfies never;
  }
}

/** Delivered before, by name: then its bytes must be the same too. */
async function sameAsBefore(
  { sessions, ...deps }: ReloadDeps,
  push: OpenPush,
  incoming: IncomingBucket,
  sequence: number,
): Promise<number> {
  const known = await sessions.bucket(push.record.id, sequence);
  const isSameFile = IDENTITY.every((field) => known.file[field] === incoming.file[field]);
  if (isSameFile || (known.isReadable && (await deps.sources.hasEqualTensors(known.file, incoming.file))))
    return sequence;
  throw await duplicate({ sessions, ...deps }, push, incoming, sequence);
}

const IDENTITY = ["path", "sizeBytes", "mtimeNs", "inode", "headerDigest"] as const satisfies (keyof CheckpointFile)[];

async function duplicate(
  { sessions }: ReloadDeps,
  push: OpenPush,
  { header }: IncomingBucket,
  sequence: number,
  tensor = header.tensors[0]?.name,
): Promise<LayercastError> {
  const { number } = await sessions.bucket(push.record.id, sequence);
  return new LayercastError(
    "tensor_duplicate",
    `${tensor} was sent before, with bucket ${number}, and not with the same bytes or not in the same bucket. A tensor's rows are sent ` +
      "once; to change what was sent, cancel this push and open another",
    { tensor, bucket: number },
  );
}

async function otherDType(
  { sessions }: ReloadDeps,
  { record, expected }: OpenPush,
  { held }: IncomingBucket,
  { tensor: index, sequence }: { tensor: number; sequence: number },
): Promise<LayercastError> {
  const tensor = expected.layout.checkpointTensors[index]?.name ?? "";
  const { number, pieces } = await sessions.bucket(record.id, sequence);
  const [before, found] = [pieces, held.pieces].map(
    (one) => one.find((piece) => piece.tensor === index)?.dtype ?? expected.dtypes[index],
  );
  return new LayercastError(
    "dtype_mismatch",
    `${tensor} is ${found}; bucket ${number} brought other rows of it as ${before}. Send all rows of a tensor in one dtype`,
    { tensor, expected: before, found, bucket: number },
  );
}

function numberTaken({ record }: OpenPush, { number, header }: IncomingBucket): LayercastError {
  const tensor = header.tensors[0]?.name;
  return new LayercastError(
    "tensor_duplicate",
    `bucket ${number} of reload ${record.id} was sent before, with other tensors than ${tensor} and what else this one holds; give it a ` +
      "number of its own",
    { tensor, bucket: number },
  );
}

async function requireRoom({ sessions }: ReloadDeps, push: OpenPush, number: number): Promise<void> {
  if ((await sessions.byNumber(push.record.id, number)) !== null) return; // perhaps the same, perhaps wanted
  const summary = await sessions.summary(push.record.id);
  if (summary === null || summary.finished) return; // accepting says more
  if (summary.accepted - summary.consumed < push.settings.maxPendingBuckets) return;
  await sessions.touch(push.record.id);
  throw full(push);
}

function full({ settings, record }: OpenPush): LayercastError {
  return new LayercastError(
    "backpressure",
    `${countOf(settings.maxPendingBuckets, "bucket")} of reload ${record.id} ${settings.maxPendingBuckets === 1 ? "is" : "are"} not consumed yet; send the next when one is (GET its bucket with ` +
      "wait), or open the push with a larger max_pending_buckets",
    { max_pending_buckets: settings.maxPendingBuckets },
  );
}

/** A long upload is a sign of life. */
async function* touchWhileReading({ sessions }: ReloadDeps, reload: string, body: AsyncIterable<Uint8Array>) {
  let touchedAt = 0;
  for await (const chunk of body) {
    if (performance.now() - touchedAt > TOUCH_EVERY_MS) {
      touchedAt = performance.now();
      await sessions.touch(reload);
    }
    yield chunk;
  }
}

const TOUCH_EVERY_MS = 1_000;

/** Its jobs go out now; if that fails, the sweep sends them. A warning about its names is given once a push. */
async function sendBucketsNow(
  deps: ReloadDeps,
  { record, state }: OpenPush,
  warning: SourceWarning | null,
): Promise<void> {
  try {
    await sendBuckets(deps, state);
    if (warning === null || record.warnings.some(({ code }) => code === warning.code)) return;
    await deps.store.transact(record.fleet, (draft) => warn(draft, record.id, record.epoch ?? 0, warning));
  } catch (error) {
    deps.log.warn({ reload: record.id, err: error }, "passing a bucket on failed; the sweep tries again");
  }
}
