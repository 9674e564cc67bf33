// `layercast engine-args vllm`: the flags that make an engine expect exactly what the fleet's live weights are.

import { Argument, type Command } from "commander";
import { LayercastError } from "../contract/errors.js";
import type { FleetView, ReloadView } from "../contract/reload.js";
import {
  addHttpOptions,
  type CommandContext,
  clientOf,
  type HttpOptions,
  integerFrom,
  printAnswer,
} from "./command.js";
import type { Client } from "./http-client.js";
import { type EngineFleet, shellWord, vllmArgs } from "./vllm-args.js";

interface EngineArgsOptions extends HttpOptions {
  fleet: string;
  replica: number;
}

export function addEngineArgs(program: Command, context: CommandContext): void {
  const command = program
    .command("engine-args")
    .description("print the flags with which an engine computes with a fleet's live weights")
    .addArgument(new Argument("<engine>", "the engine").choices(["vllm"]))
    .option("--fleet <name>", "the fleet", "default")
    .option("--replica <number>", "the replica whose weights it is to have", integerFrom(0, 1023), 0)
    .addHelpText("after", '\nIn a shell: eval "vllm serve MODEL $(layercast engine-args vllm)"');
  addHttpOptions(command).action(async (_engine: string, options: EngineArgsOptions) => {
    const answer = vllmArgs(await engineFleet(clientOf(options, context), options));
    for (const note of answer.notes) context.terminal.err(note);
    printAnswer(context.terminal, options, answer, () => [answer.args.map(shellWord).join(" ")]);
  });
}

async function engineFleet(client: Client, { fleet: name, replica }: EngineArgsOptions): Promise<EngineFleet> {
  const fleet = await client.fleet(name);
  const rank = fleet.ranks.find((one) => one.replica === replica && one.reload_id !== null);
  if (rank === undefined || rank.reload_id === null || rank.control_path === null) {
    throw new LayercastError(
      "fleet_incomplete",
      `No rank of replica ${replica} of fleet ${name} holds weights: commit a reload first, then ask again.`,
      { fleet: name, replica },
    );
  }
  const reload = await client.reload(rank.reload_id);
  return {
    fleet,
    recipe: reload.recipe,
    runDir: runDirOf(rank.control_path, fleet, rank),
    replica,
    device: rank.device.startsWith("cuda") ? "cuda" : "cpu",
    liveBytes: liveBytes(reload),
  };
}

/** RUN_DIR/FLEET/replica-R/rank-N/control */
function runDirOf(controlPath: string, { fleet }: FleetView, { replica, rank }: { replica: number; rank: number }) {
  const below = `/${fleet}/replica-${replica}/rank-${rank}/control`;
  return controlPath.endsWith(below) ? controlPath.slice(0, -below.length) : controlPath.replace(/\/control$/, "");
}

function liveBytes({ ranks }: ReloadView): number | null {
  const most = Math.max(0, ...ranks.map(({ bytes_written }) => bytes_written));
  return most === 0 ? null : most;
}
