// What others may do with the files that a process makes: weights are not for every user of the host. Set once, as the process's umask,
// so that no place that makes a file can forget it.

import { chmodSync, type Dirent, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { LayercastError } from "../contract/errors.js";

export const FILE_MODE = {
  flag: "--file-mode <octal>",
  env: "LAYERCAST_FILE_MODE",
  default: "640",
  description: "permissions of files with weights, such as 640 or 600; directories may be entered by whoever may read",
} as const;

/** "640" -> the bits; owner reads and writes, group and others read or write as it says, nobody executes. */
export function parseFileMode(text: string): number {
  if (/^6[046][046]$/.test(text)) return Number.parseInt(text, 8);
  throw new LayercastError(
    "invalid_request",
    `The file mode is '${text}': give three octal digits, 6 for the owner, then 0, 4 or 6 for the group and for others, such as 640.`,
    { file_mode: text },
  );
}

/** Who may read a directory's files may enter it. */
export function directoryModeOf(fileMode: number): number {
  return fileMode | ((fileMode & 0o444) >> 2);
}

export function useFileMode(text: string): void {
  process.umask(0o777 & ~directoryModeOf(parseFileMode(text)));
}

/** What this process makes a file with. */
export function usedFileMode(): number {
  return 0o666 & ~process.umask();
}

/** Gives a rank's directory, its two parents below the run directory, and what lies in it the mode that new files get. */
export function spreadFileMode(directory: string): void {
  const fileMode = usedFileMode();
  const directoryMode = directoryModeOf(fileMode);
  for (const own of [directory, dirname(directory), dirname(dirname(directory))]) change(own, directoryMode);
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    change(join(directory, entry.name), modeOf(entry, fileMode, directoryMode));
  }
}

function modeOf(entry: Dirent, fileMode: number, directoryMode: number): number | null {
  if (entry.isFile()) return fileMode;
  return entry.isDirectory() ? directoryMode : null;
}

function change(path: string, mode: number | null): void {
  if (mode === null) return;
  try {
    chmodSync(path, mode);
  } catch {
    // Another user's, who has given it the mode that he wants.
  }
}
