// `layercast plan`: what a reload of a checkpoint would read, hold and skip; nothing is changed.

import type { Command } from "commander";
import {
  addHttpOptions,
  type CommandContext,
  clientOf,
  expertParallelOption,
  type HttpOptions,
  integerFrom,
  printAnswer,
  requiredOption,
  sourceUri,
} from "./command.js";
import { planLines } from "./format.js";
import { dtypeOption, given, layersPerJobOption, recipeOption } from "./submit.js";

interface PlanOptions extends HttpOptions {
  source: string;
  tp?: number;
  ep?: boolean;
  fleet?: string;
  recipe?: string;
  ignore?: string[];
  dtype?: string;
  layersPerJob?: number | "auto";
}

export function addPlan(program: Command, context: CommandContext): void {
  const command = program
    .command("plan")
    .description("print the plan of a reload: layers, bytes, memory, skipped tensors")
    .addOption(requiredOption("--source <directory>", "the checkpoint").argParser(sourceUri))
    .option("--tp <number>", "tensor-parallel size", integerFrom(1, 1024))
    .addOption(expertParallelOption())
    .option("--no-ep", "cut every expert, though the fleet's ranks hold whole ones")
    .option("--fleet <name>", "take the tensor-parallel size, and --ep, from this fleet")
    .addOption(recipeOption())
    .option("--ignore <pattern...>", "checkpoint tensors that are not quantized")
    .addOption(dtypeOption())
    .addOption(layersPerJobOption());
  addHttpOptions(command).action(async (options: PlanOptions) => {
    const plan = await clientOf(options, context).plan({
      source: { kind: "safetensors", uri: options.source },
      ...given<string | number | boolean>({
        fleet: options.fleet,
        tensor_parallel_size: options.tp,
        expert_parallel: options.ep,
        dtype: options.dtype,
      }),
      recipe: given<string | string[]>({ scheme: options.recipe, ignore: options.ignore }),
      policy: given({ layers_per_job: options.layersPerJob }),
    });
    printAnswer(context.terminal, options, plan, () => planLines(plan));
  });
}
