import { runCli } from "../../orchestrator/cli/program.js";
import type { Terminal } from "../../orchestrator/cli/terminal.js";

const silent = () => undefined;

/** For a program that is read and not run. */
export const SILENT_TERMINAL: Terminal = {
  out: silent,
  err: silent,
  draw: silent,
  interactive: false,
  columns: () => 80,
  rows: () => 24,
  env: {},
};

/** Runs the CLI in this process, on a terminal that is none; what it printed comes back. */
export async function runCaptured(args: readonly string[], terminal: Partial<Terminal> = {}) {
  const out: string[] = [];
  const err: string[] = [];
  const code = await runCli(args, {
    ...SILENT_TERMINAL,
    out: (line) => void out.push(line),
    err: (line) => void err.push(line),
    draw: (text) => void out.push(text),
    ...terminal,
  });
  return { code, out: out.join("\n"), err: err.join("\n") };
}
