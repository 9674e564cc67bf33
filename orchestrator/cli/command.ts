// What the commands share: the options of those that speak HTTP, how an option's text is read, and how a command ends.

import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { type Command, InvalidArgumentError, Option } from "commander";
import { downloadAdvice } from "../checkpoint/source-path.js";
import { LayercastError } from "../contract/errors.js";
import { MAX_NAME_LENGTH, NAME_PATTERN, type ReloadView } from "../contract/reload.js";
import { LOG_LEVELS, SETTINGS } from "../host/config.js";
import { FILE_MODE } from "../host/file-mode.js";
import { tokenOf } from "../host/token.js";
import { followReload, screenOf } from "./follow.js";
import { reloadLines, reloadSentence } from "./format.js";
import { type Client, createClient, DEFAULT_URL } from "./http-client.js";
import type { Terminal } from "./terminal.js";

/** What every command gets; it sets the exit code, the program ends when nothing is left to do. */
export interface CommandContext {
  readonly terminal: Terminal;
  exitCode: number;
}

export const EXIT = { ok: 0, failed: 1, usage: 2 } as const;

export interface HttpOptions {
  url?: string;
  json?: boolean;
}

export function addHttpOptions(command: Command): Command {
  return command
    .option("--url <url>", `the orchestrator (default: LAYERCAST_URL, else ${DEFAULT_URL})`, urlOption)
    .option("--json", "print JSON for machines");
}

/** A URL or a token that cannot be one is wrong usage, before anything is sent. */
export function clientOf(options: HttpOptions, context: CommandContext): Client {
  const { env } = context.terminal;
  try {
    return createClient(options.url ?? urlOf(env), tokenOf(env));
  } catch (error) {
    context.exitCode = EXIT.usage;
    throw error;
  }
}

function urlOf({ LAYERCAST_URL: url = "" }: Terminal["env"]): string {
  if (url === "") return DEFAULT_URL;
  const wrong = wrongUrl(url);
  if (wrong !== null) throw new LayercastError("invalid_request", `LAYERCAST_URL is ${url}. ${wrong}`, { url });
  return url;
}

function urlOption(url: string): string {
  const wrong = wrongUrl(url);
  if (wrong !== null) throw new InvalidArgumentError(wrong);
  return url;
}

/** What is wrong with an orchestrator's URL; null: nothing. */
function wrongUrl(url: string): string | null {
  if (URL.canParse(url) && ["http:", "https:"].includes(new URL(url).protocol)) return null;
  const withScheme = `http://${url}`;
  return `It must begin with http:// or https://${URL.canParse(withScheme) && !url.includes("://") ? `, such as ${withScheme}` : ""}.`;
}

const required = new WeakSet<Option>();

/** An option that must be given. What was typed and is unknown is said first, so it is not commander that asks for it. */
export function requiredOption(flags: string, description: string): Option {
  const option = new Option(flags, description);
  required.add(option);
  return option;
}

export function refuseMissingOptions(command: Command): void {
  const missing = command.options.find(
    (option) => required.has(option) && command.getOptionValue(option.attributeName()) === undefined,
  );
  if (missing !== undefined) command.error(`error: required option '${missing.flags}' not specified`);
}

/** JSON when asked for, lines for people otherwise. */
export function printAnswer(terminal: Terminal, options: HttpOptions, answer: unknown, lines: () => string[]): void {
  if (options.json === true) terminal.out(JSON.stringify(answer, null, 2));
  else for (const line of lines()) terminal.out(line);
}

/** Waits for the reload's end when asked to, prints how it stands, and makes the exit code of it. */
export async function finishReload(
  context: CommandContext,
  client: Client,
  reload: ReloadView,
  options: HttpOptions & { wait: boolean },
): Promise<void> {
  const { terminal } = context;
  if (!options.wait) return printAnswer(terminal, options, reload, () => [reloadSentence(reload), followHint(reload)]);
  const screen = options.json === true ? { show: () => undefined, close: () => undefined } : screenOf(terminal);
  const interrupted = new AbortController();
  const onInterrupt = () => interrupted.abort();
  process.once("SIGINT", onInterrupt);
  try {
    const final = await followReload(client, reload, screen, { signal: interrupted.signal });
    printAnswer(terminal, options, final, () => reloadLines(final));
    if (final.state !== "committed") context.exitCode = EXIT.failed;
  } catch (error) {
    if (!interrupted.signal.aborted) throw error;
    terminal.err(`The reload goes on. ${followHint(reload)}`);
    context.exitCode = EXIT.failed;
  } finally {
    process.removeListener("SIGINT", onInterrupt);
  }
}

const followHint = (reload: ReloadView) =>
  `Follow it with \`layercast watch ${reload.reload_id}\`, stop it with \`layercast cancel ${reload.reload_id}\``;

/** All workers of a fleet must be given it, or none. */
export function fileModeOption(): Option {
  return new Option(FILE_MODE.flag, FILE_MODE.description).env(FILE_MODE.env).default(FILE_MODE.default);
}

export function logLevelOption(): Option {
  const { env, default: level } = SETTINGS.logLevel;
  return new Option("--log-level <level>", "how much is logged").choices(LOG_LEVELS).env(env).default(level);
}

export function expertParallelOption(): Option {
  return new Option("--ep", "expert parallel: whole experts by rank, instead of a part of each on every rank");
}

/** A directory as this shell sees it -> the URI that the orchestrator reads; a file:// URI stays as it is. */
export function sourceUri(source: string): string {
  if (source.startsWith("file://")) return source;
  const directory = resolve(source);
  const advice = downloadAdvice(source);
  if (advice === null || existsSync(directory)) return pathToFileURL(directory).href;
  throw new InvalidArgumentError(source.includes("://") ? advice : `There is no directory ${directory}. ${advice}`);
}

export function integerFrom(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (/^-?\d+$/.test(text) && value >= least && value <= most) return value;
    throw new InvalidArgumentError(`It must be a whole number from ${least} to ${most}.`);
  };
}

const NAME = new RegExp(NAME_PATTERN);

/** As the API takes it: it ends in keys and in names of directories. */
export function parseName(text: string): string {
  if (NAME.test(text) && text.length <= MAX_NAME_LENGTH) return text;
  throw new InvalidArgumentError(
    "It must be of letters, digits, '.', '_' and '-', begin with a letter or a digit, and have at most 100 characters.",
  );
}

const UNIT_MS = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000 } as const;

/** "1500ms", "30s", "10m", "1h" -> milliseconds. */
export function parseDurationMs(text: string): number {
  const [, digits, unit] = /^(\d+)(ms|s|m|h)$/.exec(text) ?? [];
  if (digits !== undefined && unit !== undefined) return Number(digits) * UNIT_MS[unit as keyof typeof UNIT_MS];
  throw new InvalidArgumentError("It must be a whole number with its unit ms, s, m or h, such as 10m.");
}
