// `layercast drain`: the other replicas of a fleet go on without one that is gone.

import type { Command } from "commander";
import {
  addHttpOptions,
  type CommandContext,
  clientOf,
  type HttpOptions,
  integerFrom,
  printAnswer,
  requiredOption,
} from "./command.js";
import { fleetLines } from "./format.js";

interface DrainOptions extends HttpOptions {
  fleet: string;
  replica: number;
}

export function addDrain(program: Command, context: CommandContext): void {
  const command = program
    .command("drain")
    .description("go on without a replica; it is back once its workers were started again and have caught up")
    .option("--fleet <name>", "the fleet", "default")
    .addOption(
      requiredOption("--replica <number>", "the replica, counted from 0").argParser(integerFrom(0, 1_000_000)),
    );
  addHttpOptions(command).action(async (options: DrainOptions) => {
    const fleet = await clientOf(options, context).drain(options.fleet, options.replica);
    printAnswer(context.terminal, options, fleet, () => fleetLines(fleet));
  });
}
