// Reading reload records back: one with all that its view needs, or a page of them, newest first.

import type { Redis } from "ioredis";
import { LayercastError } from "../contract/errors.js";
import { KEYS, type RankKey } from "../contract/jobs.js";
import type { PushSettings } from "../contract/push.js";
import type { RankProgress, SubmitRequest } from "../contract/reload.js";
import type { StoredPlan } from "./plan-store.js";
import type { ReloadRecord } from "./state.js";

/** What a rank says of its work, as one field of the reload's hash. */
export interface RankReport {
  progress: RankProgress;
  /** "1" or "0" for each layer of the plan. */
  layersDone: string;
}

export interface StoredReload {
  record: ReloadRecord;
  /** A rollback has its target's. */
  request: StoredRequest;
  plan: StoredPlan | null;
  ranks: Record<RankKey, RankReport>;
}

/** The submission with its defaults filled in; a rollback's has no source of its own. */
export type StoredRequest = Pick<SubmitRequest, "dtype" | "recipe" | "install" | "policy" | "metadata"> & {
  source: { kind: "safetensors"; uri: string } | PushSettings | null;
};

export type ReloadDetail = "full" | "summary";

export interface RecordPage {
  /** 1 to 200. */
  limit: number;
  /** Opaque; from the page before. */
  cursor: string | null;
  /** A summary says nothing of ranks, layers and buckets, which grow with the model and the fleet. */
  view: ReloadDetail;
}

export const RANK_FIELD = "rank:";

export interface RecordStore {
  /** Throws `not_found`. */
  read(id: string): Promise<StoredReload>;
}

export function openRecordStore(redis: Redis): RecordStore {
  return { read: async (id) => decode(id, await redis.hgetall(KEYS.reload(id))) };
}

/** Throws `not_found`. */
export async function readReloadState(redis: Redis, id: string): Promise<ReloadRecord["state"]> {
  const record = await redis.hget(KEYS.reload(id), "record");
  if (record === null) throw unknownReload(id);
  return (JSON.parse(record) as ReloadRecord).state;
}

function decode(id: string, stored: Record<string, string>): StoredReload {
  const { record, request, plan } = stored;
  if (record === undefined || request === undefined) {
    throw unknownReload(id);
  }
  const ranks: Record<RankKey, RankReport> = {};
  for (const [field, value] of Object.entries(stored)) {
    if (field.startsWith(RANK_FIELD))
      ranks[field.slice(RANK_FIELD.length) as RankKey] = JSON.parse(value) as RankReport;
  }
  return {
    record: JSON.parse(record) as ReloadRecord,
    request: JSON.parse(request) as StoredRequest,
    plan: plan === undefined ? null : (JSON.parse(plan) as StoredPlan),
    ranks,
  };
}

function unknownReload(id: string): LayercastError {
  return new LayercastError("not_found", `there is no reload ${id}; list them with GET /v1/reloads`, { reload: id });
}

const PAGE = 50;

const SUMMARY_FIELDS = ["record", "request", "plan"];

/** Up to `limit` reloads that `matches` lets through, beginning after the one named by the cursor; without ranks in a summary. */
export async function listReloads(
  redis: Redis,
  { limit, cursor, view }: RecordPage,
  matches: (record: ReloadRecord) => boolean,
): Promise<{ reloads: StoredReload[]; nextCursor: string | null }> {
  let position = cursor === null ? 0 : await positionAfter(redis, cursor);
  const found: StoredReload[] = [];
  for (;;) {
    const ids = await redis.zrevrange(KEYS.reloads, position, position + PAGE - 1);
    const pipeline = redis.pipeline();
    for (const id of ids) {
      if (view === "summary") pipeline.hmget(KEYS.reload(id), ...SUMMARY_FIELDS);
      else pipeline.hgetall(KEYS.reload(id));
    }
    const replies = (await pipeline.exec()) ?? [];
    for (const [index, id] of ids.entries()) {
      const [, stored] = replies[index] ?? [null, {}];
      const fields = Array.isArray(stored) ? namedFields(stored) : (stored as Record<string, string>);
      const reload = decode(id, fields);
      if (!matches(reload.record)) continue;
      if (found.length === limit) return { reloads: found, nextCursor: found.at(-1)?.record.id ?? null };
      found.push(reload);
    }
    if (ids.length < PAGE) return { reloads: found, nextCursor: null };
    position += PAGE;
  }
}

/** Of every reload that is kept, oldest first: what its hash has in the field. */
export async function* fieldOfEveryReload(redis: Redis, field: "record" | "plan"): AsyncGenerator<string> {
  for (let from = 0; ; from += WALKED_AT_ONCE) {
    const ids = await redis.zrange(KEYS.reloads, String(from), String(from + WALKED_AT_ONCE - 1));
    for (const value of await Promise.all(ids.map((id) => redis.hget(KEYS.reload(id), field)))) {
      if (value !== null) yield value;
    }
    if (ids.length < WALKED_AT_ONCE) return;
  }
}

const WALKED_AT_ONCE = 200;

/** As HGETALL answers: fields that are not there are left out. */
function namedFields(values: (string | null)[]): Record<string, string> {
  return Object.fromEntries(
    SUMMARY_FIELDS.flatMap((field, index) => {
      const value = values[index] ?? null;
      return value === null ? [] : [[field, value]];
    }),
  );
}

async function positionAfter(redis: Redis, cursor: string): Promise<number> {
  const position = await redis.zrevrank(KEYS.reloads, cursor);
  if (position === null) {
    throw new LayercastError("invalid_request", `the cursor ${cursor} names no reload; begin again without it`, {
      cursor,
    });
  }
  return position + 1;
}
