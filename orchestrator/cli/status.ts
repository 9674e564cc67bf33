// `layercast status [ID]`: one reload as it stands, or the newest ones.

import type { Command } from "commander";
import { addHttpOptions, type CommandContext, clientOf, type HttpOptions, printAnswer } from "./command.js";
import { reloadLines, reloadTable } from "./format.js";

const SHOWN_RELOADS = 20;

export function addStatus(program: Command, context: CommandContext): void {
  const command = program
    .command("status")
    .description("show a reload, or the newest reloads")
    .argument("[id]", "the reload")
    .option("--fleet <name>", "only those of this fleet");
  addHttpOptions(command).action(async (id: string | undefined, options: HttpOptions & { fleet?: string }) => {
    const client = clientOf(options, context);
    if (id !== undefined) {
      const reload = await client.reload(id);
      return printAnswer(context.terminal, options, reload, () => reloadLines(reload));
    }
    const reloads = await client.reloads(options.fleet ?? null, SHOWN_RELOADS);
    const none = "no reloads yet: `layercast submit --source DIR` makes one";
    printAnswer(context.terminal, options, { reloads }, () => (reloads.length === 0 ? [none] : reloadTable(reloads)));
  });
}
