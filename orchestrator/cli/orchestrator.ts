// `layercast orchestrator`: its flags and the environment -> a configuration that it runs by until a signal ends it.

import type { Command } from "commander";
import { type OrchestratorFlags, readConfig, SETTINGS } from "../host/config.js";
import type { CommandContext } from "./command.js";
import { refusingWrongUse } from "./wrong-use.js";

export function addOrchestrator(program: Command, context: CommandContext): void {
  const command = program
    .command("orchestrator")
    .description("serve the REST API and drive reloads (REDIS_URL names the Redis)");
  for (const { flag, description, env, default: value } of Object.values(SETTINGS)) {
    const otherwise = value === null ? env : `${env}, else ${value}`;
    if (flag !== null) command.option(flag, `${description} (default: ${otherwise})`);
  }
  command.action(async (flags: OrchestratorFlags) => {
    const { runOrchestrator } = await import("../main.js");
    await refusingWrongUse(context, async () => runOrchestrator(readConfig(flags, context.terminal.env)));
  });
}
