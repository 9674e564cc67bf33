import { runCli } from "../../orchestrator/cli/program.js";
import type { Terminal } from "../../orchestrator/cli/terminal.js";

/** Runs the CLI in this process, on a terminal that is none; what it printed comes back. */
export async function runCaptured(args: readonly string[], terminal: Partial<Terminal> = {}) {
  const out: string[] = [];
  const err: string[] = [];
  const code = await runCli(args, {
    out: (line) => void out.push(line),
    err: (line) => void err.push(line),
    draw: (text) => void out.push(text),
    interactive: false,
    columns: () => 80,
    rows: () => 24,
    env: {},
    ...terminal,
  });
  return { code, out: out.join("\n"), err: err.join("\n") };
}
