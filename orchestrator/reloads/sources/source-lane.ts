// The processes of one root and the tasks that wait for them. One task a process at a time: when it takes too long, the process is
// ended, and nothing else is lost with it.

import type { ChildProcess, Serializable } from "node:child_process";

/** Those that were told to end and have not yet count. */
const MAX_PROCESSES = 4;
/** One process does many short tasks one after the other; another is started when one has waited for so long. */
const GROW_AFTER_MS = 100;
const IDLE_MS = 600_000;

interface Waiting<Answer> {
  task: Serializable;
  settle(answer: Answer | null): void;
  /** A task that a process died at is tried once more. */
  tries: number;
}

interface Process<Answer> {
  child: ChildProcess;
  doing: Waiting<Answer> | null;
  idle: NodeJS.Timeout | null;
}

export interface Lane<Answer> {
  /** The answer; null when there was none in time, or two processes died at it. */
  run(task: Serializable, withinMs: number): Promise<Answer | null>;
  close(): void;
}

/** `start` makes a process that answers each message with one. */
export function openLane<Answer>(start: () => ChildProcess): Lane<Answer> {
  const processes = new Set<Process<Answer>>();
  const waiting: Waiting<Answer>[] = [];
  let growing: NodeJS.Timeout | null = null;
  let closed = false;

  function dispatch(): void {
    for (const process of processes) {
      if (waiting.length === 0) return;
      if (isFree(process)) give(process, waiting.shift() as Waiting<Answer>);
    }
    if (!mayGrow()) return;
    if ([...processes].every(isEnding)) grow();
    else if (growing === null) growing = setTimeout(growIfNeeded, GROW_AFTER_MS);
  }

  const mayGrow = () => waiting.length > 0 && processes.size < MAX_PROCESSES && !closed;

  function growIfNeeded(): void {
    growing = null;
    if (mayGrow()) grow();
  }

  function grow(): void {
    const child = start();
    const process: Process<Answer> = { child, doing: null, idle: null };
    processes.add(process);
    child.on("message", (answer: Answer) => {
      const { doing } = process;
      process.doing = null;
      process.idle = setTimeout(() => end(process), IDLE_MS).unref();
      doing?.settle(answer);
      dispatch();
    });
    child.once("exit", () => forget(process));
    child.once("error", () => forget(process));
    // Idle processes keep nobody waiting.
    child.unref();
    child.channel?.unref();
    dispatch();
  }

  function give(process: Process<Answer>, task: Waiting<Answer>): void {
    if (process.idle !== null) clearTimeout(process.idle);
    process.idle = null;
    process.doing = task;
    task.tries += 1;
    process.child.send(task.task, (error) => {
      if (error) forget(process);
    });
  }

  /** It has died, or cannot be reached: what it was doing is done once more elsewhere. */
  function forget(process: Process<Answer>): void {
    if (!processes.delete(process)) return;
    process.child.kill("SIGKILL");
    const { doing } = process;
    process.doing = null;
    if (doing !== null && doing.tries < 2 && !closed) waiting.unshift(doing);
    else doing?.settle(null);
    dispatch();
  }

  function end(process: Process<Answer>): void {
    process.doing = null;
    if (process.child.connected) process.child.disconnect();
    process.child.kill("SIGKILL");
  }

  return {
    run(task, withinMs) {
      return new Promise((resolve) => {
        const settle = (answer: Answer | null) => {
          clearTimeout(timer);
          resolve(answer);
        };
        const own: Waiting<Answer> = { task, settle, tries: 0 };
        const timer = setTimeout(() => {
          const at = waiting.indexOf(own);
          if (at >= 0) waiting.splice(at, 1);
          for (const process of processes) if (process.doing === own) end(process);
          settle(null);
          dispatch();
        }, withinMs);
        waiting.push(own);
        dispatch();
      });
    },
    close() {
      closed = true;
      if (growing !== null) clearTimeout(growing);
      for (const process of processes) end(process);
      for (const { settle } of waiting.splice(0)) settle(null);
    },
  };
}

const isEnding = ({ child }: { child: ChildProcess }) => child.killed || !child.connected;

function isFree<Answer>(process: Process<Answer>): boolean {
  return process.doing === null && !isEnding(process);
}
