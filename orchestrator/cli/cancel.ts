// `layercast cancel [ID]`: asks for a reload to be cancelled, which works until it is decided.

import type { Command } from "commander";
import { activeOrQueued } from "./choose-reload.js";
import { addHttpOptions, type CommandContext, clientOf, type HttpOptions, printAnswer } from "./command.js";
import { reloadSentence } from "./format.js";

export function addCancel(program: Command, context: CommandContext): void {
  const command = program
    .command("cancel")
    .description("cancel a reload that is not decided yet; the old weights stay live")
    .argument("[id]", "the reload (default: the one at work, else the newest that waits)")
    .option("--fleet <name>", "without an id: of this fleet");
  addHttpOptions(command).action(async (id: string | undefined, options: HttpOptions & { fleet?: string }) => {
    const client = clientOf(options, context);
    const chosen = id ?? (await activeOrQueued(client, options.fleet ?? null)).reload_id;
    const reload = await client.cancel(chosen);
    printAnswer(context.terminal, options, reload, () => [reloadSentence(reload)]);
  });
}
