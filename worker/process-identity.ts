// Which process a file names: a number alone says nothing in another container, on another host, or after the number was given to
// another process. So it stands beside the host's boot, the PID namespace that counts, and the process's start.

import { readFileSync, readlinkSync } from "node:fs";
import { hostname } from "node:os";

export interface ProcessIdentity {
  pid: number;
  /** For people. */
  host: string;
  /** The kernel's id of this boot: no two hosts share it, whatever they are called. */
  boot: string;
  /** The inode of the PID namespace that `pid` belongs to. */
  pidNamespace: string;
  /** In the kernel's ticks since it booted. */
  startedAt: string;
}

/** Null where the kernel does not tell: then no process can be known again. */
export function ownIdentity(): ProcessIdentity | null {
  try {
    const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
    const pidNamespace = /\[(\d+)\]/.exec(readlinkSync("/proc/self/ns/pid"))?.[1] ?? "";
    const startedAt = startOf("self") ?? "";
    return { pid: process.pid, host: hostname(), boot, pidNamespace, startedAt };
  } catch {
    return null;
  }
}

/** As a file says it: the number on a line of its own, then a line for each other field. */
export function formatIdentity({ pid, host, boot, pidNamespace, startedAt }: ProcessIdentity): string {
  return `${pid}\nhost ${host}\nboot ${boot}\npid_namespace ${pidNamespace}\nstarted ${startedAt}\n`;
}

const IDENTITY = /^(\d+)\nhost (.+)\nboot (\S+)\npid_namespace (\d+)\nstarted (\d+)\n$/;

/** Null for anything else, such as a file that is still being written. */
export function parseIdentity(text: string): ProcessIdentity | null {
  const [, pid, host, boot, pidNamespace, startedAt] = IDENTITY.exec(text) ?? [];
  if (!pid || !host || !boot || !pidNamespace || !startedAt) return null;
  return { pid: Number(pid), host, boot, pidNamespace, startedAt };
}

/** Whether this process counts processes as the other does: only then is its number a process of this one's. */
export function isInOwnNamespace(other: ProcessIdentity, own: ProcessIdentity): boolean {
  return other.boot === own.boot && other.pidNamespace === own.pidNamespace;
}

/** In the kernel's ticks since it booted; null when there is no such process, or only its remains. */
export function startOf(pid: number | "self"): string | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return fields[0] === "Z" ? null : (fields[19] ?? null);
  } catch {
    return null;
  }
}

/** The command line of a process of this namespace; empty when there is none. */
export function argumentsOf(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
  } catch {
    return [];
  }
}
