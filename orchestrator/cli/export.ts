// `layercast export`: a rank's live kernel tensors -> a safetensors file. The rank writes it beside its arena; this moves it, or
// reads it through the API where it lies on another host.

import { constants } from "node:fs";
import { access, rename, stat } from "node:fs/promises";
import { hostname } from "node:os";
import { dirname, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { Command } from "commander";
import { countOf } from "../contract/count-of.js";
import { type ErrorCode, LayercastError } from "../contract/errors.js";
import type { ExportView } from "../contract/reload.js";
import {
  addHttpOptions,
  type CommandContext,
  clientOf,
  type HttpOptions,
  integerFrom,
  printAnswer,
  requiredOption,
} from "./command.js";
import { formatBytes } from "./format.js";
import type { Client } from "./http-client.js";
import { writeNewFile } from "./new-file.js";
import { refusingWrongUse } from "./wrong-use.js";

interface ExportOptions extends HttpOptions {
  fleet: string;
  replica: number;
  rank: number;
  out: string;
}

export function addExport(program: Command, context: CommandContext): void {
  const command = program
    .command("export")
    .description("write a rank's live kernel tensors as a safetensors file")
    .option("--fleet <name>", "the fleet", "default")
    .option("--replica <number>", "the replica", integerFrom(0, 1_000_000), 0)
    .addOption(requiredOption("--rank <number>", "the rank").argParser(integerFrom(0, 1_000_000)))
    .addOption(requiredOption("--out <file>", "where to write; an existing file is replaced"));
  addHttpOptions(command).action(async (options: ExportOptions) => {
    const client = clientOf(options, context);
    await refusingWrongUse(context, () => requireWritable(options.out));
    const { fleet, replica, rank } = options;
    const answer = await exportPatiently(client, fleet, replica, rank, (words) => context.terminal.err(words));
    const path = await fetchExport(client, fleet, answer, options.out);
    const words = `${path}: ${formatBytes(answer.bytes)}, weight version ${answer.weight_version}`;
    printAnswer(context.terminal, options, { ...answer, path }, () => [words]);
  });
}

/** Before the rank writes what nobody could then fetch. Throws `invalid_request`. */
export async function requireWritable(out: string): Promise<void> {
  const target = resolve(out);
  const directory = dirname(target);
  const refuse = (why: string) => {
    const sentence = `--out is ${target}, and ${why}: give a file in a directory that is there and may be written to.`;
    return new LayercastError("invalid_request", sentence, { out: target });
  };
  const isDirectory = await stat(directory).then(
    (status) => status.isDirectory(),
    (error: NodeJS.ErrnoException) => error.code ?? error.message,
  );
  if (isDirectory === false) throw refuse(`${directory} is no directory`);
  if (isDirectory !== true) throw refuse(`its directory ${directory} cannot be looked at (${isDirectory})`);
  await access(directory, constants.W_OK | constants.X_OK).catch((error: NodeJS.ErrnoException) => {
    throw refuse(`its directory ${directory} cannot be written to (${error.code})`);
  });
  if ((await stat(target).catch(() => null))?.isDirectory()) throw refuse("that is a directory");
}

/** Asks again while the answer says that the same may work later; an orchestrator that nobody reaches is said at once. */
export async function exportPatiently(
  client: Pick<Client, "exportRank">,
  fleet: string,
  replica: number,
  rank: number,
  tell: (words: string) => void,
  giveUpAfterMs = GIVE_UP_AFTER_MS,
): Promise<ExportView> {
  const startedAt = performance.now();
  for (let tries = 0; ; tries++) {
    try {
      return await client.exportRank(fleet, replica, rank);
    } catch (error) {
      const mayWork = error instanceof LayercastError && error.retryable && !FINAL_HERE.includes(error.code);
      if (!mayWork || performance.now() - startedAt > giveUpAfterMs) throw error;
      if (tries === 0) tell(`${error.code}: ${error.message} Trying again for ${giveUpAfterMs / 1000} s.`);
      const { retry_after_s: seconds } = error.details;
      await delay(typeof seconds === "number" ? seconds * 1000 : GO_ON_AFTER_MS);
    }
  }
}

const FINAL_HERE: readonly ErrorCode[] = ["io_error", "internal"];

/** Brings the exported file to `out`, from whichever host it lies on; returns where it is now. */
export async function fetchExport(client: Client, fleet: string, answer: ExportView, out: string): Promise<string> {
  const target = resolve(out);
  if (answer.host === hostname() && (await isMoved(answer.path, target))) return target;
  try {
    await writeNewFile(target, exportedBytes(client, fleet, answer));
  } catch (error) {
    throw explain(error, answer, target);
  }
  // It goes by itself in time, so that an orchestrator that is just restarting fails nothing here.
  await client.removeExport(fleet, answer.export_id).catch(() => undefined);
  return target;
}

/** False where it is another file system, another user's directory, or a container that this process does not see into. */
async function isMoved(from: string, to: string): Promise<boolean> {
  return rename(from, to).then(
    () => true,
    () => false,
  );
}

/** Goes on where a connection broke, at whichever orchestrator then answers. */
export async function* exportedBytes(
  client: Pick<Client, "readExport">,
  fleet: string,
  { export_id: id, bytes }: ExportView,
  giveUpAfterMs = GIVE_UP_AFTER_MS,
): AsyncGenerator<Uint8Array> {
  let at = 0;
  let progressAt = performance.now();
  while (at < bytes) {
    try {
      for await (const chunk of client.readExport(fleet, id, at)) {
        at += chunk.length;
        if (chunk.length > 0) progressAt = performance.now();
        yield chunk;
      }
    } catch (error) {
      const mayWork = error instanceof LayercastError && error.retryable;
      if (!mayWork || performance.now() - progressAt > giveUpAfterMs) throw error;
    }
    if (at < bytes) await delay(GO_ON_AFTER_MS);
  }
  if (at > bytes)
    throw new LayercastError("io_error", `The export has ${countOf(bytes, "byte")}, and ${at} came.`, {
      bytes,
      got: at,
    });
}

/** Without any progress. */
const GIVE_UP_AFTER_MS = 60_000;
const GO_ON_AFTER_MS = 500;

function explain(error: unknown, { host, path, export_id }: ExportView, target: string): LayercastError {
  const reason = error instanceof Error ? error.message : String(error);
  return new LayercastError(
    error instanceof LayercastError ? error.code : "io_error",
    `The export cannot be brought to ${target} (${reason}): it is at ${path} on host ${host} for an hour; give another --out, ` +
      "or fetch it from there.",
    { path, host, out: target, export_id },
    error,
  );
}
