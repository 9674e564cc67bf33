// `layercast worker`: one rank of one replica on one device, until a signal ends it.

import { resolve } from "node:path";
import { type Command, Option } from "commander";
import { LayercastError } from "../contract/errors.js";
import { type LogLevel, readRedisUrl } from "../host/config.js";
import { useFileMode } from "../host/file-mode.js";
import {
  type CommandContext,
  expertParallelOption,
  fileModeOption,
  integerFrom,
  logLevelOption,
  parseName,
  requiredOption,
} from "./command.js";
import { refusingWrongUse } from "./wrong-use.js";

export interface WorkerCommandOptions {
  fleet: string;
  replica: number;
  replicas: number;
  rank: number;
  tp: number;
  ep?: true;
  device: string;
  runDir: string;
  takeOver?: "arena" | "rank";
  fileMode: string;
  logLevel: LogLevel;
}

export const DEFAULT_RUN_DIR = ".layercast";

export function addWorker(program: Command, context: CommandContext): void {
  const number = integerFrom(0, 1_000_000);
  const size = integerFrom(1, 1_000_000);
  program
    .command("worker")
    .description("hold one rank's kernel tensors and load them (REDIS_URL names the Redis)")
    .option("--fleet <name>", "the fleet", parseName, "default")
    .option("--replica <number>", "which replica of the fleet", number, 0)
    .option("--replicas <number>", "how many replicas the fleet has", size, 1)
    .addOption(requiredOption("--rank <number>", "which rank of the replica").argParser(number))
    .addOption(requiredOption("--tp <number>", "tensor-parallel size: ranks of a replica").argParser(size))
    .addOption(expertParallelOption())
    .option("--device <device>", "what it runs on: cpu, or cuda:N for a GPU of this host", "cpu")
    .option("--run-dir <directory>", "where arenas lie", DEFAULT_RUN_DIR)
    .addOption(takeOverOption())
    .addOption(fileModeOption())
    .addOption(logLevelOption())
    .action(async (options: WorkerCommandOptions) => {
      const { runWorker } = await import("../../worker/main.js");
      await refusingWrongUse(context, async () => {
        refusePlaceOutside(options);
        const redisUrl = readRedisUrl(context.terminal.env);
        const { tp, ep = false, takeOver = null, fileMode, ...place } = options;
        useFileMode(fileMode);
        const runDir = resolve(options.runDir);
        await runWorker({ ...place, tensorParallelSize: tp, expertParallel: ep, takeOver, runDir, redisUrl });
      });
    });
}

function takeOverOption(): Option {
  return new Option(
    "--take-over [what]",
    "replace a living worker: arena, the one of this run directory; rank (the default), also one with another",
  )
    .choices(["arena", "rank"])
    .preset("rank");
}

/** A rank that no plan has would be alive, and of no use, for as long as its process lives. */
function refusePlaceOutside({ rank, tp, replica, replicas }: WorkerCommandOptions): void {
  refuseIndex("--rank", rank, "--tp", tp, "the ranks of a replica");
  refuseIndex("--replica", replica, "--replicas", replicas, "the replicas of a fleet");
}

function refuseIndex(flag: string, index: number, sizeFlag: string, size: number, what: string): void {
  if (index < size) return;
  throw new LayercastError(
    "invalid_request",
    `${flag} is ${index} and ${sizeFlag} is ${size}: ${what} are counted from 0, so the highest is ${size - 1}. ` +
      `Give a lower ${flag}, or a higher ${sizeFlag} to every worker of the fleet.`,
    { [flag.slice(2)]: index, [sizeFlag.slice(2)]: size },
  );
}
