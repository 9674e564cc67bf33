// `layercast fleet [NAME]`: which ranks a fleet has, what each holds, and whether it may be routed to.

import type { Command } from "commander";
import { addHttpOptions, type CommandContext, clientOf, type HttpOptions, printAnswer } from "./command.js";
import { fleetLines } from "./format.js";

export function addFleet(program: Command, context: CommandContext): void {
  const command = program.command("fleet").description("show one fleet, or all").argument("[name]", "the fleet");
  addHttpOptions(command).action(async (name: string | undefined, options: HttpOptions) => {
    const client = clientOf(options, context);
    if (name !== undefined) {
      const fleet = await client.fleet(name);
      return printAnswer(context.terminal, options, fleet, () => fleetLines(fleet));
    }
    const fleets = await client.fleets();
    const none = "no fleets yet: `layercast up` or `layercast worker` makes one";
    printAnswer(context.terminal, options, { fleets }, () =>
      fleets.length === 0 ? [none] : fleets.flatMap(fleetLines),
    );
  });
}
