// `layercast push`: a checkpoint on disk -> a push session, as a trainer would send it from its memory: in any order, in buckets of
// any size, in parts of tensors.

import { type Command, Option } from "commander";
import { LayercastError } from "../contract/errors.js";
import { pushSettings, RETAIN } from "../contract/push.js";
import type { ReloadView } from "../contract/reload.js";
import {
  addHttpOptions,
  type CommandContext,
  clientOf,
  EXIT,
  integerFrom,
  printAnswer,
  requiredOption,
  sourceUri,
} from "./command.js";
import { type CutBucket, cutBuckets, PUSH_ORDERS, type PushOrder, type StoredTensor } from "./cut-buckets.js";
import { followReload, type Screen, screenOf } from "./follow.js";
import { reloadLines } from "./format.js";
import type { Client, PushDraft } from "./http-client.js";
import { bodyDelivery, type Delivery, fileDelivery, sendBuckets, whenTaking } from "./send-buckets.js";
import { readStoredCheckpoint, type StoredCheckpoint } from "./stored-checkpoint.js";
import { addReloadOptions, given, printPlan, type ReloadOptions, submitBody } from "./submit.js";

interface PushOptions extends ReloadOptions {
  order: PushOrder;
  seed: number;
  bucketBytes: number;
  rows?: number;
  bucketDir?: string;
  partial?: string[];
  retain?: string;
  retainExport?: true;
  maxPendingBuckets?: number;
  maxBufferBytes?: number;
  warnBufferBytes?: number;
}

const DEFAULT_BUCKET_BYTES = 64 * 2 ** 20;
const DEFAULT_PATIENCE_MS = 600_000;

export function addPush(program: Command, context: CommandContext): void {
  const bytes = integerFrom(1, Number.MAX_SAFE_INTEGER);
  const command = program
    .command("push")
    .description("send a checkpoint's tensors in buckets, as a trainer would from its memory, and wait for the commit")
    .addOption(
      requiredOption("--source <directory>", "the checkpoint; only this command reads it").argParser(sourceUri),
    )
    .addOption(
      new Option("--order <order>", "of the tensors: as on disk, module by module, or at random")
        .choices(PUSH_ORDERS)
        .default("module"),
    )
    .option("--seed <number>", "of the random order", integerFrom(0, 2 ** 32 - 1), 0)
    .option("--bucket-bytes <number>", "tensor bytes in a bucket, at most", bytes, DEFAULT_BUCKET_BYTES)
    .option("--rows <number>", "send parts of tensors, of at most so many rows", integerFrom(1, 2 ** 32))
    .option(
      "--bucket-dir <directory>",
      "write buckets as files here, which every worker can read, instead of streaming",
    )
    .option("--partial <pattern...>", "send only tensors of these names, which make whole modules; * is any characters")
    .addOption(new Option("--retain <who>", "who keeps buckets until the end (default: spool)").choices(RETAIN))
    .option("--retain-export", "let each rank keep a file of what it then holds, to start again from")
    .option("--max-pending-buckets <number>", "buckets that are not consumed yet, at most", integerFrom(1, 10_000))
    .option("--max-buffer-bytes <number>", "what a rank may hold of modules that are not complete", bytes)
    .option("--warn-buffer-bytes <number>", "no warning below this", integerFrom(0, Number.MAX_SAFE_INTEGER));
  addReloadOptions(command);
  addHttpOptions(command).action((options: PushOptions) => runPush(context, options));
}

async function runPush(context: CommandContext, options: PushOptions): Promise<void> {
  const client = clientOf(options, context);
  const checkpoint = await readStoredCheckpoint(options.source);
  const chosen = chosenTensors(checkpoint.tensors, options.partial ?? null);
  const body = submitBody(options, pushSource(options, checkpoint));
  if (options.dryRun === true) return await printPlan(context, client, body, options);
  const screen = options.json === true ? { show: () => undefined, close: () => undefined } : screenOf(context.terminal);
  const final = await sendAndFollow(client, await client.submit(body), chosen, options, screen);
  printAnswer(context.terminal, options, final, () => reloadLines(final));
  if (final.state !== "committed") context.exitCode = EXIT.failed;
}

function pushSource(options: PushOptions, { config, tensors }: StoredCheckpoint): PushDraft {
  return {
    kind: "push",
    config,
    tensors: tensors.map(({ name, dtype, shape }) => ({ name, dtype, shape })),
    ...given<string | number | boolean>({
      retain: options.retain,
      retain_export: options.retainExport,
      partial: options.partial === undefined ? undefined : true,
      max_pending_buckets: options.maxPendingBuckets,
      max_buffer_bytes: options.maxBufferBytes,
      warn_buffer_bytes: options.warnBufferBytes,
    }),
  };
}

function chosenTensors(tensors: readonly StoredTensor[], patterns: readonly string[] | null): readonly StoredTensor[] {
  if (patterns === null) return tensors;
  const expressions = patterns.map(wholeName);
  const chosen = tensors.filter(({ name }) => expressions.some((expression) => expression.test(name)));
  if (chosen.length > 0) return chosen;
  throw new LayercastError(
    "invalid_request",
    `No tensor of the checkpoint is called ${patterns.join(" or ")}: give whole names, with * for any characters`,
    { patterns },
  );
}

function wholeName(pattern: string): RegExp {
  const pieces = pattern.split("*").map((piece) => piece.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  return new RegExp(`^${pieces.join(".*")}$`, "s");
}

/** The reload as it ended. What goes wrong here, and Ctrl-C, cancels it: nobody else has the tensors. */
async function sendAndFollow(
  client: Client,
  reload: ReloadView,
  tensors: readonly StoredTensor[],
  options: PushOptions,
  screen: Screen,
): Promise<ReloadView> {
  const id = reload.reload_id;
  const ended = new AbortController();
  let latest = reload;
  let failure: unknown = null;
  const watching: Screen = {
    ...screen,
    show(before, after) {
      latest = after.reload;
      screen.show(before, after);
    },
  };
  const cancel = () => client.cancel(id).catch(() => null);
  const wanted = () => latest.push?.buckets.wanted ?? [];
  const sending = send({ client, id, tensors, options, wanted, signal: ended.signal }).catch(async (error: unknown) => {
    if (ended.signal.aborted || isClosed(error)) return;
    failure = error;
    await cancel();
  });
  process.once("SIGINT", cancel);
  try {
    const final = await followReload(client, reload, watching, { signal: ended.signal });
    if (failure !== null) throw failure;
    return final;
  } finally {
    process.removeListener("SIGINT", cancel);
    ended.abort();
    await sending;
  }
}

/** Its end says more. */
const isClosed = (error: unknown) => error instanceof LayercastError && error.code === "session_closed";

interface SendOptions {
  client: Client;
  id: string;
  tensors: readonly StoredTensor[];
  options: PushOptions;
  wanted(): readonly number[];
  signal: AbortSignal;
}

async function send({ client, id, tensors, options, wanted, signal }: SendOptions): Promise<void> {
  await whenTaking(client, id, signal);
  const byModule = options.order === "module" ? (await client.expectedTensors(id)).tensors : [];
  const names = byModule.map(({ name }) => name);
  const buckets = cutBuckets(tensors, names, { ...options, rows: options.rows ?? null });
  const pendingBuckets = options.maxPendingBuckets ?? pushSettings({}).maxPendingBuckets;
  const patienceMs = options.deadline ?? DEFAULT_PATIENCE_MS;
  const all = { client, reload: id, buckets: buckets.length, pendingBuckets, patienceMs, wanted, signal };
  await withDelivery(client, id, buckets, options.bucketDir, (delivery) => sendBuckets({ ...all, delivery }));
}

async function withDelivery(
  client: Client,
  id: string,
  buckets: readonly CutBucket[],
  directory: string | undefined,
  use: (delivery: Delivery) => Promise<void>,
): Promise<void> {
  if (directory === undefined) return await use(bodyDelivery(client, id, buckets));
  const delivery = fileDelivery(client, id, buckets, directory);
  try {
    await use(delivery);
  } finally {
    await delivery.releaseAll();
  }
}
