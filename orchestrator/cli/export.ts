// `layercast export`: a rank's live kernel tensors -> a safetensors file. The rank writes it beside its arena; this moves it.

import { copyFile, rename, rm } from "node:fs/promises";
import { hostname } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import type { Command } from "commander";
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
    const answer = await clientOf(options, context).exportRank(options.fleet, options.replica, options.rank);
    const path = await fetchExport(answer, options.out);
    const words = `${path}: ${formatBytes(answer.bytes)}, weight version ${answer.weight_version}`;
    printAnswer(context.terminal, options, { ...answer, path }, () => [words]);
  });
}

/** Moves the exported file to `out`; returns where it is now. */
export async function fetchExport(answer: ExportView, out: string): Promise<string> {
  if (answer.host !== hostname()) {
    throw new LayercastError(
      "io_error",
      `The rank runs on host ${answer.host}, this is ${hostname()}: the file is there, at ${answer.path}; fetch it from there`,
      { host: answer.host, path: answer.path },
    );
  }
  const target = resolve(out);
  await move(answer.path, target).catch((error: unknown) => {
    const reason = error instanceof Error ? error.message : String(error);
    throw new LayercastError(
      "io_error",
      `The export cannot be moved to ${target} (${reason}): it is at ${answer.path}; move it, or give another --out`,
      { path: answer.path, out: target },
      error,
    );
  });
  return target;
}

async function move(from: string, to: string): Promise<void> {
  try {
    await rename(from, to);
  } catch (error) {
    if ((error as { code?: string }).code !== "EXDEV") throw error;
    // Another file system: whole under another name first, so that nobody finds half a file.
    const partial = join(dirname(to), `.${basename(to)}.${process.pid}.partial`);
    await copyFile(from, partial).then(
      () => rename(partial, to),
      async (copyError: unknown) => {
        await rm(partial, { force: true });
        throw copyError;
      },
    );
    await rm(from);
  }
}
