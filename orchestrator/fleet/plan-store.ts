// A reload's plan in Redis: its layout by mapping digest (kept from step to step), its source by reload. The worker reads it here.
// Both are deflated: of a model with 92,000 tensors they are 11 MB of JSON, mostly names that are nearly alike, and then 1 MB.

import { promisify } from "node:util";
import { deflate, inflate } from "node:zlib";
import type { Redis } from "ioredis";
import { LayercastError } from "../contract/errors.js";
import { type Held, KEYS, type RetryPolicy } from "../contract/jobs.js";
import { type Layout, PLAN_FORMAT, type Plan, type Source, type SourceWarning } from "../contract/plan.js";
import type { ReadSource } from "../contract/reload.js";
import { keepLast } from "./keep-last.js";

/** Where the other half of an arena lies: in the device's memory, or in the host's; `auto`: the first, where there is room. */
export type StagingPlace = "device" | "host" | "auto";

/** What a rank may hold of modules that are not complete, in bytes. */
export interface BufferLimits {
  /** null: no limit. */
  maxBufferBytes: number | null;
  /** Below it no warning is given. */
  warnBufferBytes: number;
}

/** How a reload's bytes are delivered. */
export interface Delivery {
  /** `safetensors`: files that are there before the reload. `push`: buckets; the source's one file is none. */
  kind: ReadSource["kind"];
  /** The weights of which some modules are changed; null: all modules are delivered. */
  base: Held | null;
  limits: BufferLimits;
  /** Each rank keeps a file of what it holds after the commit. */
  retainExport: boolean;
}

/** What a reload's hash says of its plan. */
export interface StoredPlan extends Delivery {
  /** PLAN_FORMAT of the release that stored it. */
  format: number;
  layoutDigest: string;
  mappingDigest: string;
  sourceDigest: string;
  /** Layer indexes, one list a job. */
  layerJobs: number[][];
  allowNonFinite: boolean;
  stagingPlace: StagingPlace;
  retry: RetryPolicy;
  /** What is odd about the source, and was put up with. */
  warnings: readonly SourceWarning[];
  /** By Redis's clock, before the first look at the source's files. A plan of an earlier version does not say. */
  plannedAt?: number;
}

/** What was skipped is for who asks for a plan; a reload's record is read too often to carry thousands of names. */
export type ReloadPlan = Pick<Plan, "layout" | "source"> & Omit<StoredPlan, "format">;

export interface PlanStore {
  save(reload: string, plan: ReloadPlan): Promise<void>;
  /** The plan that gives a content's bytes; `source_gone` when its record is no longer kept. */
  load(content: string): Promise<ReloadPlan>;
  /** A layout by its mapping digest; the same one comes back each RL step. */
  mapping(digest: string): Promise<Layout | null>;
  /** The newest layout with that layout digest: its arena is that of every other. */
  layout(digest: string): Promise<Layout | null>;
}

export function openPlanStore(redis: Redis): PlanStore {
  // A plan never changes, and each of a reload's jobs asks for it.
  const layouts = keepLast<Layout>(4);
  const plans = keepLast<ReloadPlan>(4);

  async function mapping(digest: string): Promise<Layout | null> {
    const known = layouts.get(digest);
    if (known !== undefined) return known;
    const layout = await unpacked<Layout>(await redis.getBuffer(KEYS.mapping(digest)));
    return layout === null ? null : layouts.set(digest, layout);
  }

  return {
    mapping,
    async layout(digest) {
      const newest = await redis.get(KEYS.layout(digest));
      return newest === null ? null : mapping(newest);
    },
    async save(reload, plan) {
      const { layout, source, ...stored } = plan;
      const mappingKey = KEYS.mapping(plan.mappingDigest);
      const [isKnown, packedSource] = await Promise.all([redis.exists(mappingKey), packed(source)]);
      const writes = redis.multi();
      if (isKnown === 0) writes.set(mappingKey, await packed(layout), "NX");
      writes.persist(mappingKey); // trimming may be about to remove it
      writes.set(KEYS.layout(plan.layoutDigest), plan.mappingDigest);
      writes.set(KEYS.source(reload), packedSource);
      writes.hset(KEYS.reload(reload), "plan", JSON.stringify({ ...stored, format: PLAN_FORMAT } satisfies StoredPlan));
      await writes.exec();
      // Where it went between the look and the write. From here on the reload's record names it, so it stays.
      if ((await redis.exists(mappingKey)) === 0) await redis.set(mappingKey, await packed(layout));
      plans.set(reload, plan);
    },
    async load(content) {
      const known = plans.get(content);
      if (known !== undefined) return known;
      const [stored, packedSource] = await Promise.all([
        redis.hget(KEYS.reload(content), "plan"),
        redis.getBuffer(KEYS.source(content)),
      ]);
      const found = stored === null ? null : (JSON.parse(stored) as StoredPlan);
      if (found !== null && found.format !== PLAN_FORMAT) throw planOfAnotherRelease(content, found.format);
      const source = found === null ? null : await unpacked<Source>(packedSource);
      const layout = found === null ? null : await mapping(found.mappingDigest);
      if (found === null || source === null || layout === null) {
        throw new LayercastError(
          "source_gone",
          `the plan of reload ${content} is no longer kept; submit its checkpoint again`,
          { reload: content },
        );
      }
      const { format: _, ...plan } = found;
      return plans.set(content, { ...plan, layout, source });
    },
  };
}

function planOfAnotherRelease(content: string, format: number | undefined): LayercastError {
  return new LayercastError(
    "source_gone",
    `The plan of reload ${content} was stored by another release of Layercast (format ${format ?? "none"}, this release reads ` +
      `${PLAN_FORMAT}). Submit its checkpoint again.`,
    { reload: content, format: format ?? null, expected: PLAN_FORMAT },
  );
}

const deflated = promisify<string, { level: number }, Buffer>(deflate);
const inflated = promisify<Buffer, Buffer>(inflate);
/** Higher levels make it a tenth smaller. */
const DEFLATE = { level: 1 };

const packed = (value: Layout | Source): Promise<Buffer> => deflated(JSON.stringify(value), DEFLATE);

async function unpacked<Value>(stored: Buffer | null): Promise<Value | null> {
  return stored === null ? null : (JSON.parse((await inflated(stored)).toString()) as Value);
}
