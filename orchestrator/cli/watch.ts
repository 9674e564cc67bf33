// `layercast watch ID`: follows a reload to its end; the exit code says whether it committed.

import type { Command } from "commander";
import { addHttpOptions, type CommandContext, clientOf, finishReload, type HttpOptions } from "./command.js";

export function addWatch(program: Command, context: CommandContext): void {
  const command = program
    .command("watch")
    .description("follow a reload until it ends; exit code 0 only when it committed")
    .argument("<id>", "the reload");
  addHttpOptions(command).action(async (id: string, options: HttpOptions) => {
    const client = clientOf(options, context);
    await finishReload(context, client, await client.reload(id), { ...options, wait: true });
  });
}
