// In which boot of the host a rank's arena was last known to be whole. The control page and the live file are pages of memory that the
// kernel brings to disk when it likes: after the host has been started again the one may be newer than the other, and nothing in
// either says so. Within a boot both are what the last worker left.

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

export function isOfThisBoot(directory: string): boolean {
  const boot = bootId();
  try {
    return boot !== null && readFileSync(bootFile(directory), "utf8") === boot;
  } catch {
    return false;
  }
}

export function noteBoot(directory: string): void {
  const boot = bootId();
  if (boot !== null) writeFileSync(bootFile(directory), boot);
}

const bootFile = (directory: string) => join(directory, "boot");

function bootId(): string | null {
  try {
    return readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  } catch {
    return null;
  }
}
