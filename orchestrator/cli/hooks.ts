// `layercast hooks [show|set|clear]`: what a fleet's engines are asked before live bytes change, and after.

import { readFile } from "node:fs/promises";
import { Argument, type Command, InvalidArgumentError, Option } from "commander";
import { LayercastError } from "../contract/errors.js";
import { MAX_HOOK_TIMEOUT_MS, ON_FAILURE, PAUSE_MODES, PRESET_NAMES } from "../contract/hooks.js";
import {
  addHttpOptions,
  type CommandContext,
  clientOf,
  type HttpOptions,
  parseDurationMs,
  printAnswer,
} from "./command.js";
import { hooksLines } from "./format.js";
import { given } from "./submit.js";

interface HooksOptions extends HttpOptions {
  fleet: string;
  file?: string;
  preset?: string;
  engine?: string[];
  mode?: string;
  keepCache?: true;
  timeout?: number;
  onFailure?: string;
}

export function addHooks(program: Command, context: CommandContext): void {
  const command = program
    .command("hooks")
    .description("show, set or clear how a fleet's engines are paused and resumed")
    .addArgument(new Argument("[action]", "what to do").choices(["show", "set", "clear"]).default("show"))
    .option("--fleet <name>", "the fleet", "default")
    .option("--file <file>", "set: the hooks as JSON, as the API takes them")
    .addOption(new Option("--preset <engine>", "set: the routes of this engine").choices(PRESET_NAMES))
    .option("--engine <url...>", "set: where the engine is, such as http://host:8000; one, or one a replica")
    .addOption(new Option("--mode <mode>", "set: what becomes of requests in flight").choices(PAUSE_MODES))
    .option("--keep-cache", "set, vllm: keep what the old weights left in the KV cache")
    .option("--timeout <time>", "set: for all engines to answer, such as 30s", parseTimeoutMs)
    .addOption(new Option("--on-failure <what>", "set: when an engine does not pause").choices(ON_FAILURE));
  addHttpOptions(command).action(async (action: "show" | "set" | "clear", options: HooksOptions) => {
    refuseMisuse(command, action, options);
    const { fleet } = options;
    const { terminal } = context;
    const client = clientOf(options, context);
    if (action === "clear") {
      await client.clearHooks(fleet);
      return printAnswer(terminal, options, null, () => [`fleet ${fleet} has no hooks`]);
    }
    const hooks = action === "set" ? await client.setHooks(fleet, await hooksBody(options)) : await client.hooks(fleet);
    printAnswer(terminal, options, hooks, () => hooksLines(fleet, hooks));
  });
}

function parseTimeoutMs(text: string): number {
  const ms = parseDurationMs(text);
  if (ms >= 1 && ms <= MAX_HOOK_TIMEOUT_MS) return ms;
  throw new InvalidArgumentError(`It must be from 1ms to ${MAX_HOOK_TIMEOUT_MS / 1_000}s.`);
}

/** A mistake here would otherwise set, or seem to set, something else than was typed. */
function refuseMisuse(command: Command, action: string, options: HooksOptions): void {
  const { file, preset, engine, mode, keepCache, timeout, onFailure } = options;
  const written = Object.keys(given<unknown>({ preset, engine, mode, keepCache, timeout, onFailure }));
  const isSetting = file !== undefined || written.length > 0;
  if (action !== "set" && isSetting)
    command.error(`error: only \`hooks set\` takes what is to be set, not \`hooks ${action}\``);
  if (action !== "set") return;
  if (file !== undefined && written.length > 0)
    command.error("error: --file says everything: give no other setting with it");
  if (file === undefined && (preset === undefined || engine === undefined)) {
    command.error("error: give --file, or --preset with --engine");
  }
}

async function hooksBody({
  file,
  preset,
  engine,
  mode,
  keepCache,
  timeout,
  onFailure,
}: HooksOptions): Promise<unknown> {
  if (file !== undefined) return readJsonFile(file);
  return given<unknown>({
    preset,
    url: engine?.length === 1 ? engine[0] : engine,
    mode,
    clear_cache: keepCache === true ? false : undefined,
    timeout_ms: timeout,
    on_failure: onFailure,
  });
}

async function readJsonFile(file: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(file, "utf8"));
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new LayercastError("invalid_request", `${file} cannot be read as JSON (${reason})`, { file }, error);
  }
}
