// Where buckets are kept until their reload has ended: a directory that every orchestrator and worker can read, with one directory
// a reload. A bucket comes here as a copy of the trainer's file, as a link to one that nobody writes to again, or as a body.

import { randomUUID } from "node:crypto";
import { constants } from "node:fs";
import { copyFile, link, mkdir, open, readdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { describeFile } from "../../checkpoint/checkpoint-file.js";
import { LayercastError } from "../../contract/errors.js";
import type { CheckpointFile } from "../../contract/plan.js";

export interface Spool {
  readonly directory: string;
  /** The bucket's own file; `immutable`: a link will do. */
  keep(reload: string, from: string, immutable: boolean): Promise<CheckpointFile>;
  /** Writes a body; the file is the caller's to give up. Throws `checkpoint_invalid` when it is not of that size. */
  receive(reload: string, body: AsyncIterable<Uint8Array>, sizeBytes: number): Promise<string>;
  giveUp(path: string): Promise<void>;
  /** All of a reload's. */
  remove(reload: string): Promise<void>;
  /** Reloads that something is kept of. */
  reloads(): Promise<string[]>;
}

export function openSpool(directory: string): Spool {
  async function newPath(reload: string): Promise<string> {
    const own = join(directory, reload);
    await mkdir(own, { recursive: true }).catch((error: unknown) => {
      throw cannotSpool(directory, error);
    });
    return join(own, `${randomUUID()}.safetensors`);
  }

  return {
    directory,
    async keep(reload, from, immutable) {
      const path = await newPath(reload);
      if (!(immutable && (await isLinked(from, path)))) await copy(from, path);
      return describeFile(path);
    },
    async receive(reload, body, sizeBytes) {
      const path = await newPath(reload);
      try {
        // Opened first: a stream that is given up while it opens its file would make it after it was removed.
        const file = (await open(path, "wx")).createWriteStream();
        await pipeline(body, file);
        if (file.bytesWritten !== sizeBytes) throw wrongLength(sizeBytes, file.bytesWritten);
        return path;
      } catch (error) {
        await rm(path, { force: true });
        throw error instanceof LayercastError ? error : cannotSpool(directory, error);
      }
    },
    giveUp: (path) => rm(path, { force: true }),
    remove: (reload) => rm(join(directory, reload), { recursive: true, force: true }),
    reloads: () => readdir(directory).catch(() => []),
  };

  /** Under another name first: what is under its own is whole. */
  async function copy(from: string, to: string): Promise<void> {
    const part = `${to}.part`;
    try {
      await copyFile(from, part, constants.COPYFILE_FICLONE);
      await rename(part, to);
    } catch (error) {
      await rm(part, { force: true });
      throw cannotSpool(directory, error);
    }
  }
}

/** Not across file systems, nor of what belongs to somebody else. */
async function isLinked(from: string, to: string): Promise<boolean> {
  try {
    await link(from, to);
    return true;
  } catch {
    return false;
  }
}

function wrongLength(expected: number, found: number): LayercastError {
  return new LayercastError(
    "checkpoint_invalid",
    `the bucket's body has ${found} bytes, and Content-Length says ${expected}; send it again`,
    { expected, found },
  );
}

function cannotSpool(directory: string, error: unknown): LayercastError {
  const errno = (error as { code?: unknown }).code;
  if (errno === "ENOSPC" || errno === "EDQUOT")
    return new LayercastError(
      "out_of_memory",
      `there is no space for a bucket in ${directory} (${errno}); make room, use another --spool-dir, or open pushes with retain: trainer`,
      { directory, errno },
      error,
    );
  return new LayercastError(
    "io_error",
    `a bucket could not be kept in ${directory}: ${String(error)}`,
    { directory },
    error,
  );
}
