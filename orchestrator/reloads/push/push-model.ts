// What a push session is about, in Redis: the model's config, and the list of its tensors where the trainer gave one.

import { promisify } from "node:util";
import { deflate, inflate } from "node:zlib";
import type { Redis } from "ioredis";
import type { Checkpoint } from "../../checkpoint/checkpoint-table.js";
import { parseModelConfig } from "../../checkpoint/model-config.js";
import { LayercastError } from "../../contract/errors.js";
import { KEYS } from "../../contract/jobs.js";
import type { PushModel } from "../../contract/push.js";
import { declaredTable } from "../../planner/declared-table.js";

/** As text, so that a script can write it beside the record. */
export async function packPushModel(model: PushModel): Promise<string> {
  return (await deflated(JSON.stringify(model))).toString("base64");
}

/** Throws `source_gone` when its record is no longer kept. */
export async function loadPushModel(redis: Redis, reload: string): Promise<PushModel> {
  const stored = await redis.get(KEYS.pushModel(reload));
  if (stored !== null) return JSON.parse((await inflated(Buffer.from(stored, "base64"))).toString()) as PushModel;
  throw new LayercastError("source_gone", `the model of push ${reload} is no longer kept; push its weights again`, {
    reload,
  });
}

/** What it declares, in the place of a checkpoint's headers. */
export function declaredCheckpoint({ config: fields, tensors }: PushModel): Checkpoint {
  if (isDeeperThan(MAX_DEPTH, fields))
    throw new LayercastError("invalid_request", `${CONFIG} is nested deeper than ${MAX_DEPTH}. Correct it.`);
  const config = parseModelConfig(JSON.stringify(fields), CONFIG);
  return { config, table: declaredTable(config, tensors) };
}

/** What is read level by level by functions that call themselves must not be of any depth. */
function isDeeperThan(levels: number, value: unknown): boolean {
  if (typeof value !== "object" || value === null) return false;
  return levels === 0 || Object.values(value).some((inner) => isDeeperThan(levels - 1, inner));
}

const MAX_DEPTH = 32;
/** What sentences call it. */
const CONFIG = "source.config";
const deflated = promisify<string, Buffer>(deflate);
const inflated = promisify<Buffer, Buffer>(inflate);
