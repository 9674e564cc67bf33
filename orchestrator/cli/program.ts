// The command line: `layercast COMMAND ...` -> one of the commands, and whatever it throws -> words and an exit code.

import { Command, CommanderError } from "commander";
import { reportError } from "../contract/errors.js";
import { VERSION } from "../host/version.js";
import { addCancel } from "./cancel.js";
import { errorWords } from "./cli-words.js";
import { type CommandContext, EXIT, refuseMissingOptions } from "./command.js";
import { addDemo } from "./demo.js";
import { addDrain, addUndrain } from "./drain.js";
import { addEngineArgs } from "./engine-args.js";
import { addExport } from "./export.js";
import { addFleet } from "./fleet.js";
import { addHooks } from "./hooks.js";
import { addOrchestrator } from "./orchestrator.js";
import { addPlan } from "./plan.js";
import { addPush } from "./push.js";
import { addRollback } from "./rollback.js";
import { addStatus } from "./status.js";
import { addSubmit } from "./submit.js";
import type { Terminal } from "./terminal.js";
import { addUp } from "./up.js";
import { addWatch } from "./watch.js";
import { addWorker } from "./worker.js";

const COMMANDS = [
  ...[addUp, addSubmit, addPush, addStatus, addWatch, addCancel, addPlan, addFleet, addRollback, addExport],
  ...[addHooks, addEngineArgs, addDrain, addUndrain, addOrchestrator, addWorker, addDemo],
];

export function buildProgram(context: CommandContext): Command {
  const program = new Command("layercast")
    .version(VERSION, "--version", "print the version")
    .description("Puts new weights into a running multi-GPU inference fleet: all ranks or none.")
    .addHelpText("after", "\nLAYERCAST_URL and LAYERCAST_TOKEN say which orchestrator to speak to, and as whom.")
    .configureOutput({
      writeOut: (text) => context.terminal.out(text.trimEnd()),
      writeErr: (text) => context.terminal.err(text.trimEnd()),
    })
    .showHelpAfterError("(layercast --help lists the commands, layercast COMMAND --help its options)")
    .exitOverride();
  program.hook("preAction", (_, command) => refuseMissingOptions(command));
  for (const add of COMMANDS) add(program, context);
  return program;
}

/** Resolves when the command has done its work; a server's goes on after that. */
export async function runCli(args: readonly string[], terminal: Terminal): Promise<number> {
  const context: CommandContext = { terminal, exitCode: EXIT.ok };
  try {
    await buildProgram(context).parseAsync([...args], { from: "user" });
    return context.exitCode;
  } catch (error) {
    // commander has printed it; help that was asked for is no error.
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
    const report = reportError(error);
    terminal.err(args.includes("--json") ? JSON.stringify({ error: report }) : `layercast: ${errorWords(report)}`);
    return context.exitCode === EXIT.ok ? EXIT.failed : context.exitCode;
  }
}
