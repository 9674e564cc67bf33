// A trainer that rewrites the same files each step can have them read by the GPU itself, over the bus at its full speed: files
// that two commits in a row came from are pinned, after the second, while nobody waits. Any other file is read by threads.

import { totalmem } from "node:os";
import type { Logger } from "pino";
import type { Device, NativeCore } from "../native/native.js";
import type { CheckpointFile } from "../orchestrator/contract/plan.js";

/** Pinned memory is the page cache's own, but the system cannot take it back. */
const LIMIT_BYTES = totalmem() / 2;

/** The returned function hears of each commit's files. */
export function pinRepeatedSources(
  core: NativeCore,
  device: Device,
  log: Logger,
): (files: readonly CheckpointFile[]) => void {
  let before = new Set<string>();
  let pinning = Promise.resolve();
  return (files) => {
    const repeated = files.filter((file) => before.has(nameOf(file)));
    before = new Set(files.map(nameOf));
    pinning = pinning
      .then(() => core.pinSources(device, [...repeated], LIMIT_BYTES))
      .then(({ pinnedBytes }) => log.debug({ pinned_bytes: pinnedBytes }, "sources pinned"))
      .catch((error: unknown) => log.warn({ err: error }, "sources are not pinned; they are read by threads"));
  };
}

/** The same file, whatever is written in it. */
function nameOf({ path, inode, sizeBytes }: CheckpointFile): string {
  return `${path} ${inode} ${sizeBytes}`;
}
