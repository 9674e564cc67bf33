// `layercast export`: a rank's live kernel tensors -> a safetensors file. The rank writes it beside its arena; this moves it, or
// reads it through the API where it lies on another host.

import { rename } from "node:fs/promises";
import { hostname } from "node:os";
import { resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { Command } from "commander";
import { countOf } from "../contract/count-of.js";
import { LayercastError } from "../contract/errors.js";
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
    const answer = await client.exportRank(options.fleet, options.replica, options.rank);
    const path = await fetchExport(client, options.fleet, answer, options.out);
    const words = `${path}: ${formatBytes(answer.bytes)}, weight version ${answer.weight_version}`;
    printAnswer(context.terminal, options, { ...answer, path }, () => [words]);
  });
}

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
