// `layercast drain` and `undrain`: the other replicas of a fleet go on without one, and take it back.

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
  addReplicaCommand(
    program,
    context,
    "drain",
    "go on without a replica, until it is undrained or its workers start again",
  );
}

export function addUndrain(program: Command, context: CommandContext): void {
  addReplicaCommand(
    program,
    context,
    "undrain",
    "take a drained replica back, once it holds what the fleet has committed",
  );
}

function addReplicaCommand(
  program: Command,
  context: CommandContext,
  name: "drain" | "undrain",
  description: string,
): void {
  const command = program
    .command(name)
    .description(description)
    .option("--fleet <name>", "the fleet", "default")
    .addOption(
      requiredOption("--replica <number>", "the replica, counted from 0").argParser(integerFrom(0, 1_000_000)),
    );
  addHttpOptions(command).action(async (options: DrainOptions) => {
    const fleet = await clientOf(options, context)[name](options.fleet, options.replica);
    printAnswer(context.terminal, options, fleet, () => fleetLines(fleet));
  });
}
