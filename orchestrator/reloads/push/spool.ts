// Where buckets are kept until their reload has ended: a directory that every orchestrator and worker can read, with one directory
// a reload. A bucket comes here as a copy of the trainer's file, as a link to one that nobody writes to again, or as a body.

import { randomUUID } from "node:crypto";
import { mkdir, open, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { countOf } from "../../contract/count-of.js";
import { LayercastError } from "../../contract/errors.js";
import type { CheckpointFile } from "../../contract/plan.js";
import { cannotSpool, keepFile } from "./keep-file.js";

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

/** `keepFrom`: keepFile(), wherever what touches a trainer's files is done. */
export function openSpool(directory: string, keepFrom = keepFile): Spool {
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
      return keepFrom(directory, from, await newPath(reload), immutable);
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
}

function wrongLength(expected: number, found: number): LayercastError {
  return new LayercastError(
    "checkpoint_invalid",
    `the bucket's body has ${countOf(found, "byte")}, and Content-Length says ${expected}; send it again`,
    { expected, found },
  );
}
