// `layercast rollback`: brings an earlier weight version of a fleet back, and waits for it as for any reload.

import type { Command } from "commander";
import { addHttpOptions, type CommandContext, clientOf, finishReload, type HttpOptions } from "./command.js";
import { given } from "./submit.js";

interface RollbackOptions extends HttpOptions {
  fleet: string;
  to?: string;
  expect?: string;
  submissionId?: string;
  wait: boolean;
}

export function addRollback(program: Command, context: CommandContext): void {
  const command = program
    .command("rollback")
    .description("bring the previous weights back (a reload of kind rollback)")
    .option("--fleet <name>", "the fleet", "default")
    .option("--to <weight-version>", "which weights (default: the fleet's rollback_version)")
    .option("--expect <weight-version>", "refuse unless the fleet holds these now")
    .option("--submission-id <name>", "the same id again is the same rollback")
    .option("--wait", "wait for the end (default)", true)
    .option("--no-wait", "return as soon as it is accepted");
  addHttpOptions(command).action(async (options: RollbackOptions) => {
    const client = clientOf(options, context);
    const reload = await client.rollback(
      options.fleet,
      given({
        submission_id: options.submissionId,
        expected_weight_version: options.expect,
        to_weight_version: options.to,
      }),
    );
    await finishReload(context, client, reload, options);
  });
}
