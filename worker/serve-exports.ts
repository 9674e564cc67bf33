// A rank's exports on its own disk: parts of them for whoever asks over Redis, and their end, an hour after they were last of use.

import { type FileHandle, open, readdir, rm, stat, utimes } from "node:fs/promises";
import { join } from "node:path";
import type { Redis } from "ioredis";
import {
  EXPORT_CHANNELS,
  EXPORT_KEPT_MS,
  encodePartAnswer,
  exportFile,
  type PartAnswer,
  type PartRequest,
  parsePartRequest,
} from "../orchestrator/contract/exports.js";
import type { Rank } from "./rank.js";

const SWEEP_EVERY_MS = 60_000;
/** Reading says that an export is still of use; so often is enough. */
const NOTE_USE_MS = 60_000;

/** Until the returned function is called. */
export async function serveExports(rank: Rank, redis: Redis, subscriber: Redis): Promise<() => void> {
  const directory = rank.arena.exportDirectory;
  const warn = (error: unknown) => rank.log.warn({ err: error }, "an export could not be served or removed");
  await sweepExports(directory, Date.now(), true).catch(warn);
  const timer = setInterval(() => void sweepExports(directory, Date.now(), false).catch(warn), SWEEP_EVERY_MS);
  timer.unref();
  const channel = EXPORT_CHANNELS.asked(rank.fleet, rank.key);
  subscriber.on("message", (from: string, text: string) => {
    const request = from === channel ? parsePartRequest(text) : null;
    if (request === null) return;
    answerPart(directory, request)
      .then((answer) => redis.publish(EXPORT_CHANNELS.answered(request.orchestrator), encodePartAnswer(answer)))
      .catch(warn);
  });
  await subscriber.subscribe(channel);
  return () => clearInterval(timer);
}

/** Removes what is past its time; `atStart` also what a process that was killed left unfinished, for this one has begun nothing. */
export async function sweepExports(directory: string, now: number, atStart: boolean): Promise<void> {
  for (const name of await readdir(directory)) {
    const path = join(directory, name);
    const status = await stat(path).catch(() => null); // moved away in the meantime
    if (status?.isFile() !== true) continue;
    if ((atStart && /\.new-\d+-\d+$/.test(name)) || status.mtimeMs + EXPORT_KEPT_MS < now)
      await rm(path, { force: true });
  }
}

/** Rejects never: what goes wrong is the answer. */
export async function answerPart(directory: string, request: PartRequest): Promise<PartAnswer> {
  const nothing = { number: request.number, sizeBytes: 0, message: "", content: Buffer.alloc(0) };
  const path = join(directory, exportFile(request.id));
  try {
    if (request.kind === "remove") {
      await rm(path);
      return { ...nothing, result: "ok" };
    }
    return { ...nothing, ...(await readPart(path, request)), result: "ok" };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return { ...nothing, result: "gone" };
    return { ...nothing, result: "failed", message: error instanceof Error ? error.message : String(error) };
  }
}

async function readPart(path: string, { offset, bytes }: PartRequest): Promise<{ sizeBytes: number; content: Buffer }> {
  const file = await open(path);
  try {
    const { size: sizeBytes, mtimeMs } = await file.stat();
    if (Date.now() - mtimeMs > NOTE_USE_MS) await utimes(path, new Date(), new Date()).catch(() => undefined);
    return { sizeBytes, content: await readAt(file, offset, Math.max(0, Math.min(bytes, sizeBytes - offset))) };
  } finally {
    await file.close();
  }
}

async function readAt(file: FileHandle, offset: number, bytes: number): Promise<Buffer> {
  const content = Buffer.allocUnsafe(bytes);
  let done = 0;
  while (done < bytes) {
    const { bytesRead } = await file.read(content, done, bytes - done, offset + done);
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return content.subarray(0, done);
}
