// A checkpoint file as another host described it -> the same as this host has it. Hosts may each have a copy of a checkpoint, or see
// one file system with inode numbers of their own: across hosts a file is known by size and header. What a host finds at its
// first look it is held to until the end of the reload, by inode and time, so a change is found as on one host.

import { stat } from "node:fs/promises";
import { hostname } from "node:os";
import { LayercastError } from "../contract/errors.js";
import type { CheckpointFile } from "../contract/plan.js";
import { describeFile, FILES_AT_ONCE, inParallel, sourceChanged, statusOf } from "./checkpoint-file.js";

/**
 * `plannedAgoMs`: how long ago the files were described; null: it is not known, and they must be the very same. A copy that was
 * last written after that is refused: nobody could tell it from one that was changed. Ages are compared, not times, for hosts'
 * clocks do not matter.
 */
export function filesOnThisHost(
  files: readonly CheckpointFile[],
  plannedAgoMs: number | null,
): Promise<CheckpointFile[]> {
  return inParallel(files, FILES_AT_ONCE, (file) => fileOnThisHost(file, plannedAgoMs));
}

async function fileOnThisHost(file: CheckpointFile, plannedAgoMs: number | null): Promise<CheckpointFile> {
  const startedAt = performance.now();
  const now = await statusOf(file.path);
  if (now.mtimeNs === file.mtimeNs && now.inode === file.inode) return file;
  if (plannedAgoMs === null)
    throw sourceChanged(file.path, "inode or modification time", identity(file), identity(now));
  const found = await sameContent(file);
  const { ctimeMs } = await stat(file.path);
  const changedAgoMs = Date.now() - ctimeMs;
  if (changedAgoMs > plannedAgoMs + performance.now() - startedAt) return found;
  throw new LayercastError(
    "source_changed",
    `${file.path} on host ${hostname()} is not the file that was planned (its inode and modification time were ${identity(file)} and are ` +
      `${identity(now)}), and it was written after that. Make copies before a reload is submitted, leave them as they are until it ` +
      "has ended, and submit again.",
    {
      file: file.path,
      host: hostname(),
      changed_ago_ms: Math.round(changedAgoMs),
      planned_ago_ms: Math.round(plannedAgoMs),
    },
  );
}

/** A bucket's file is one file on a file system that hosts share: only its inode number may be another host's own. */
export async function bucketOnThisHost(file: CheckpointFile): Promise<CheckpointFile> {
  const now = await statusOf(file.path);
  if (now.inode === file.inode || now.mtimeNs !== file.mtimeNs) return file;
  return sameContent(file);
}

/** Of the same size and header, as far as a look that reads no tensor can tell. */
async function sameContent(file: CheckpointFile): Promise<CheckpointFile> {
  const found = await describeFile(file.path);
  if (found.sizeBytes !== file.sizeBytes) {
    throw sourceChanged(file.path, "size in bytes", file.sizeBytes, found.sizeBytes);
  }
  if (found.headerDigest !== file.headerDigest) {
    throw sourceChanged(file.path, "header digest", file.headerDigest, found.headerDigest);
  }
  return found;
}

const identity = ({ inode, mtimeNs }: Pick<CheckpointFile, "inode" | "mtimeNs">) => `${inode}, ${mtimeNs} ns`;
