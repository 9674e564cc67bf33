// `layercast watch [ID]`: follows a reload to its end; the exit code says whether it committed.

import type { Command } from "commander";
import { activeOrNewest } from "./choose-reload.js";
import { addHttpOptions, type CommandContext, clientOf, finishReload, type HttpOptions } from "./command.js";

export function addWatch(program: Command, context: CommandContext): void {
  const command = program
    .command("watch")
    .description("follow a reload until it ends; exit code 0 only when it committed")
    .argument("[id]", "the reload (default: the one at work, else the newest)")
    .option("--fleet <name>", "without an id: of this fleet");
  addHttpOptions(command).action(async (id: string | undefined, options: HttpOptions & { fleet?: string }) => {
    const client = clientOf(options, context);
    const reload = id === undefined ? await activeOrNewest(client, options.fleet ?? null) : await client.reload(id);
    await finishReload(context, client, reload, { ...options, wait: true });
  });
}
