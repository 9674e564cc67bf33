// `layercast cancel ID`: asks for a reload to be cancelled, which works until it is decided.

import type { Command } from "commander";
import { addHttpOptions, type CommandContext, clientOf, type HttpOptions, printAnswer } from "./command.js";
import { reloadSentence } from "./format.js";

export function addCancel(program: Command, context: CommandContext): void {
  const command = program
    .command("cancel")
    .description("cancel a reload that is not decided yet; the old weights stay live")
    .argument("<id>", "the reload");
  addHttpOptions(command).action(async (id: string, options: HttpOptions) => {
    const reload = await clientOf(options, context).cancel(id);
    printAnswer(context.terminal, options, reload, () => [reloadSentence(reload)]);
  });
}
