// A file that appears under its name only once it is whole. Until then it has no name at all, so that nothing stays of it when this
// process is killed. File systems that have no such files (NFS) give it a hidden name beside its place, the same each time.

import { execFile } from "node:child_process";
import { constants } from "node:fs";
import { copyFile, type FileHandle, open, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { promisify } from "node:util";

/** Not among Node's constants: a file without a name, to be linked later. */
const O_TMPFILE = 0o20000000 | constants.O_DIRECTORY;

/** Writes the chunks to a new file that then takes the place of `target`. */
export async function writeNewFile(target: string, chunks: AsyncIterable<Uint8Array>): Promise<void> {
  const partial = join(dirname(target), `.${basename(target)}.partial`);
  const unnamed = await openUnnamed(dirname(target));
  const onSignal = (signal: NodeJS.Signals) =>
    void rm(partial, { force: true }).finally(() => process.kill(process.pid, signal));
  for (const signal of SIGNALS) process.once(signal, onSignal);
  const file = unnamed ?? (await open(partial, "w"));
  try {
    for await (const chunk of chunks) await file.writeFile(chunk);
    if (unnamed !== null) await giveName(unnamed, partial);
    await rename(partial, target);
  } catch (error) {
    await rm(partial, { force: true });
    throw error;
  } finally {
    for (const signal of SIGNALS) process.removeListener(signal, onSignal);
    await file.close();
  }
}

const SIGNALS = ["SIGINT", "SIGTERM"] as const;

async function openUnnamed(directory: string): Promise<FileHandle | null> {
  return open(directory, constants.O_RDWR | O_TMPFILE, 0o666).catch(() => null);
}

/** By `ln`, as Node's own link does not follow the kernel's name of a descriptor. */
async function giveName(file: FileHandle, path: string): Promise<void> {
  const self = `/proc/${process.pid}/fd/${file.fd}`;
  await promisify(execFile)("ln", ["-L", "-f", self, path]).catch(() => copyFile(self, path));
}
