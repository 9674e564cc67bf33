// Child processes that belong to this one: each leads a process group of its own, so that a Ctrl-C on the terminal reaches
// only the owner, and gets SIGTERM from the kernel when the owner dies, however it dies.

import { type ChildProcess, type SpawnOptions, spawn } from "node:child_process";
import { LayercastError } from "../../contract/errors.js";

/** Ends at once when the owner died before the kernel was told to watch it; otherwise becomes the program. */
const START_IF_OWNED = 'test "$PPID" = "$0" || exit 1; exec "$@"';

/** Starts `command` by way of setpriv (util-linux). Call it from the main thread: the kernel watches the calling thread. */
export function spawnOwned(command: string, args: readonly string[], options: SpawnOptions = {}): ChildProcess {
  const chain = ["--pdeathsig", "TERM", "sh", "-c", START_IF_OWNED, String(process.pid), command, ...args];
  const child = spawn("setpriv", chain, { ...options, detached: true });
  child.on("error", () => undefined);
  if (child.pid === undefined) {
    throw new LayercastError(
      "io_error",
      `${command} could not be started: setpriv, which ties it to this process, did not run. Install util-linux`,
      { command },
    );
  }
  return child;
}

/** Signals the child's whole group; false when it is gone already. */
export function signalGroup(child: ChildProcess, signal: NodeJS.Signals): boolean {
  if (child.pid === undefined || hasExited(child)) return false;
  try {
    return process.kill(-child.pid, signal);
  } catch {
    return false;
  }
}

export function hasExited(child: ChildProcess): boolean {
  return child.exitCode !== null || child.signalCode !== null;
}

export function whenExited(child: ChildProcess): Promise<void> {
  if (hasExited(child)) return Promise.resolve();
  return new Promise((resolve) => child.once("exit", () => resolve()));
}

export function exitWords(child: ChildProcess): string {
  return child.signalCode === null ? `exit code ${child.exitCode}` : `signal ${child.signalCode}`;
}

/** SIGTERM, then SIGKILL for what is still there after `graceMs`. */
export async function endProcess(child: ChildProcess, graceMs: number): Promise<void> {
  const ended = whenExited(child);
  signalGroup(child, "SIGTERM");
  const timer = setTimeout(() => signalGroup(child, "SIGKILL"), graceMs);
  await ended;
  clearTimeout(timer);
}
