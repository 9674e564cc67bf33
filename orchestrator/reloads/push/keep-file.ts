// A trainer's file -> the spool's own copy of it, or a link to it where nobody writes to it again.

import { constants } from "node:fs";
import { chmod, copyFile, link, rename, rm } from "node:fs/promises";
import { describeFile } from "../../checkpoint/checkpoint-file.js";
import { LayercastError } from "../../contract/errors.js";
import type { CheckpointFile } from "../../contract/plan.js";
import { usedFileMode } from "../../host/file-mode.js";

/** `to` is a path in the spool that nothing has yet; `immutable`: a link will do. */
export async function keepFile(spool: string, from: string, to: string, immutable: boolean): Promise<CheckpointFile> {
  if (!(immutable && (await isLinked(from, to)))) await copy(spool, from, to);
  return describeFile(to);
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

/** Under another name first: what is under its own is whole. */
async function copy(spool: string, from: string, to: string): Promise<void> {
  const part = `${to}.part`;
  try {
    await copyFile(from, part, constants.COPYFILE_FICLONE);
    await chmod(part, usedFileMode()); // the copy has the trainer's
    await rename(part, to);
  } catch (error) {
    await rm(part, { force: true });
    throw cannotSpool(spool, error);
  }
}

export function cannotSpool(spool: string, error: unknown): LayercastError {
  const errno = (error as { code?: unknown }).code;
  if (errno === "ENOSPC" || errno === "EDQUOT")
    return new LayercastError(
      "out_of_memory",
      `there is no space for a bucket in ${spool} (${errno}); make room, use another --spool-dir, or open pushes with retain: trainer`,
      { directory: spool, errno },
      error,
    );
  return new LayercastError(
    "io_error",
    `a bucket could not be kept in the spool ${spool}: ${String(error)}`,
    { directory: spool },
    error,
  );
}
