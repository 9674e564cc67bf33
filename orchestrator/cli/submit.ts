// `layercast submit`: options -> POST /v1/reloads, then the wait for its end. What is not given is left to the orchestrator.

import { type Command, Option } from "commander";
import { REQUEST_DTYPES } from "../contract/dtype.js";
import { RECIPES } from "../contract/recipe.js";
import {
  addHttpOptions,
  type CommandContext,
  clientOf,
  finishReload,
  type HttpOptions,
  integerFrom,
  parseDurationMs,
  printAnswer,
  requiredOption,
  sourceUri,
} from "./command.js";
import { planLines } from "./format.js";
import type { Client, PlanDraft, SubmitDraft } from "./http-client.js";

/** What a reload is asked for with, whatever its source. */
export interface ReloadOptions extends HttpOptions {
  source: string;
  recipe?: string;
  ignore?: string[];
  dtype?: string;
  weightVersion?: string;
  submissionId?: string;
  fleet?: string;
  inPlace?: true;
  staging?: string;
  allowNewLayout?: true;
  allowNonFinite?: true;
  layersPerJob?: number | "auto";
  deadline?: number;
  coalesce?: string;
  priority?: number;
  dryRun?: true;
}

interface SubmitOptions extends ReloadOptions {
  wait: boolean;
}

export function addSubmit(program: Command, context: CommandContext): void {
  const command = program
    .command("submit")
    .description("reload a fleet from a checkpoint and wait until it is committed")
    .addOption(
      requiredOption(
        "--source <directory>",
        "the checkpoint: a directory or file:// URI that every worker can read",
      ).argParser(sourceUri),
    );
  addReloadOptions(command)
    .option("--wait", "wait for the end (default)", true)
    .option("--no-wait", "return as soon as it is accepted");
  addHttpOptions(command).action(async (options: SubmitOptions) => {
    const client = clientOf(options, context);
    const body = submitBody(options, { kind: "safetensors", uri: options.source });
    if (options.dryRun === true) return await printPlan(context, client, body, options);
    await finishReload(context, client, await client.submit(body), options);
  });
}

export function addReloadOptions(command: Command): Command {
  return command
    .addOption(recipeOption())
    .option("--ignore <pattern...>", "checkpoint tensors that are not quantized; * is any run of characters")
    .addOption(dtypeOption())
    .option("--weight-version <name>", "what these weights are called (default: the submission id)")
    .option("--submission-id <name>", "the same id and options again are the same reload")
    .option("--fleet <name>", "the fleet (default: default)")
    .option("--in-place", "overwrite the live weights: no memory for staging needed, no way back")
    .addOption(
      new Option(
        "--staging <place>",
        "where new weights wait on a GPU's rank: auto is the device, if it has room",
      ).choices(["auto", "device", "host"]),
    )
    .option("--allow-new-layout", "let kernel tensors change shape or place; consumers must attach again")
    .option("--allow-non-finite", "let NaN and infinity through")
    .addOption(layersPerJobOption())
    .option("--deadline <time>", "from submit to the decision, such as 10m", parseDurationMs)
    .addOption(
      new Option("--coalesce <policy>", "latest: supersede older reloads that are not decided").choices([
        "never",
        "latest",
      ]),
    )
    .option("--priority <number>", "higher goes first", integerFrom(-1000, 1000))
    .option("--dry-run", "print the plan, change nothing");
}

export async function printPlan(
  { terminal }: CommandContext,
  client: Client,
  body: SubmitDraft,
  options: HttpOptions,
): Promise<void> {
  const plan = await client.plan(planBody(body));
  printAnswer(terminal, options, plan, () => planLines(plan));
}

/** What of a submission decides its plan. */
function planBody({ fleet = "default", source, dtype, recipe, policy }: SubmitDraft): PlanDraft {
  const { layers_per_job } = (policy ?? {}) as { layers_per_job?: unknown };
  return { fleet, source, dtype, recipe, policy: { layers_per_job } };
}

export function recipeOption(): Option {
  return new Option("--recipe <scheme>", "how linear weights are quantized (default: none)").choices(RECIPES);
}

export function dtypeOption(): Option {
  return new Option(
    "--dtype <dtype>",
    "round 16- and 32-bit tensors to it first (default: auto, as in the checkpoint)",
  ).choices(Object.keys(REQUEST_DTYPES));
}

export function layersPerJobOption(): Option {
  const atLeastOne = integerFrom(1, 100_000);
  return new Option("--layers-per-job <number>", "layers in one job, or auto (default)").argParser((text) =>
    text === "auto" ? "auto" : atLeastOne(text),
  );
}

export function submitBody(options: ReloadOptions, source: SubmitDraft["source"]): SubmitDraft {
  return {
    ...given({ submission_id: options.submissionId, fleet: options.fleet, weight_version: options.weightVersion }),
    source,
    ...given({ dtype: options.dtype }),
    recipe: given({ scheme: options.recipe, ignore: options.ignore }),
    install: given({
      mode: options.inPlace === true ? "in_place" : undefined,
      staging: options.staging,
      allow_new_layout: options.allowNewLayout,
      allow_non_finite: options.allowNonFinite,
    }),
    policy: given({
      coalesce: options.coalesce,
      priority: options.priority,
      deadline_ms: options.deadline,
      layers_per_job: options.layersPerJob,
    }),
  };
}

/** The fields that have a value. */
export function given<Value>(fields: Record<string, Value | undefined>): Record<string, Value> {
  return Object.fromEntries(Object.entries(fields).filter((field): field is [string, Value] => field[1] !== undefined));
}
