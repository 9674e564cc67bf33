// `layercast status [ID]`: one reload as it stands, or the newest ones.

import { type Command, Option } from "commander";
import { RELOAD_STATES } from "../contract/reload.js";
import {
  addHttpOptions,
  type CommandContext,
  clientOf,
  type HttpOptions,
  integerFrom,
  printAnswer,
} from "./command.js";
import { reloadLines, reloadTable } from "./format.js";

const SHOWN_RELOADS = 20;

interface StatusOptions extends HttpOptions {
  fleet?: string;
  state?: string;
  limit: number;
  all?: true;
}

export function addStatus(program: Command, context: CommandContext): void {
  const command = program
    .command("status")
    .description("show a reload, or the newest reloads")
    .argument("[id]", "the reload")
    .option("--fleet <name>", "only those of this fleet")
    .addOption(new Option("--state <state>", "only those in this state").choices(RELOAD_STATES))
    .option("--limit <number>", "how many, newest first", integerFrom(1, 100_000), SHOWN_RELOADS)
    .option("--all", "all that are kept, instead of --limit");
  addHttpOptions(command).action(async (id: string | undefined, options: StatusOptions) => {
    const client = clientOf(options, context);
    if (id !== undefined) {
      const reload = await client.reload(id);
      return printAnswer(context.terminal, options, reload, () => reloadLines(reload));
    }
    const { fleet = null, state = null, limit, all } = options;
    const reloads = await client.reloads({ fleet, state, limit: all === true ? Number.POSITIVE_INFINITY : limit });
    printAnswer(context.terminal, options, { reloads }, () =>
      reloads.length === 0 ? [noneWords(options)] : reloadTable(reloads),
    );
  });
}

function noneWords({ fleet, state }: StatusOptions): string {
  if (fleet === undefined && state === undefined) return "no reloads yet: `layercast submit --source DIR` makes one";
  const words = [state ?? "", "reloads", fleet === undefined ? "" : `of fleet ${fleet}`];
  return `no ${words.filter((word) => word !== "").join(" ")}`;
}
