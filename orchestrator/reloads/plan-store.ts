// A reload's plan in Redis: its layout by digest (kept from step to step), its source by reload. The worker reads it here.

import type { Redis } from "ioredis";
import { LayercastError } from "../contract/errors.js";
import { KEYS, type RetryPolicy } from "../contract/jobs.js";
import type { Layout, Plan, Source } from "../contract/plan.js";

/** Where the other half of an arena lies: in the device's memory, or in the host's; `auto`: the first, where there is room. */
export type StagingPlace = "device" | "host" | "auto";

/** What a reload's hash says of its plan. */
export interface StoredPlan {
  layoutDigest: string;
  sourceDigest: string;
  skipped: Plan["skipped"];
  /** Layer indexes, one list a job. */
  layerJobs: number[][];
  allowNonFinite: boolean;
  stagingPlace: StagingPlace;
  retry: RetryPolicy;
}

export type LoadedPlan = Plan & Pick<StoredPlan, "layerJobs" | "allowNonFinite" | "stagingPlace" | "retry">;

/** The last few of each stay in memory: a plan never changes, and each of a reload's jobs asks for it. */
function keepLast<Value>(count: number) {
  const kept = new Map<string, Value>();
  return {
    get: (key: string) => kept.get(key),
    set(key: string, value: Value): Value {
      const oldest = kept.size >= count ? kept.keys().next().value : undefined;
      if (oldest !== undefined) kept.delete(oldest);
      kept.set(key, value);
      return value;
    },
  };
}

export interface PlanStore {
  save(reload: string, plan: LoadedPlan): Promise<void>;
  /** The plan that gives a content's bytes; `source_gone` when its record is no longer kept. */
  load(content: string): Promise<LoadedPlan>;
  /** A layout by its digest; the same one comes back each RL step. */
  layout(digest: string): Promise<Layout | null>;
}

export function openPlanStore(redis: Redis): PlanStore {
  const layouts = keepLast<Layout>(4);
  const plans = keepLast<LoadedPlan>(4);

  async function loadLayout(digest: string): Promise<Layout | null> {
    const known = layouts.get(digest);
    if (known !== undefined) return known;
    const stored = await redis.get(KEYS.layout(digest));
    return stored === null ? null : layouts.set(digest, JSON.parse(stored) as Layout);
  }

  return {
    layout: loadLayout,
    async save(reload, plan) {
      const { layout, source, ...stored } = plan;
      await redis
        .multi()
        .set(KEYS.layout(plan.layoutDigest), JSON.stringify(layout), "NX")
        .set(KEYS.source(reload), JSON.stringify(source))
        .hset(KEYS.reload(reload), "plan", JSON.stringify(stored satisfies StoredPlan))
        .exec();
      plans.set(reload, plan);
    },
    async load(content) {
      const known = plans.get(content);
      if (known !== undefined) return known;
      const [stored, source] = await Promise.all([
        redis.hget(KEYS.reload(content), "plan"),
        redis.get(KEYS.source(content)),
      ]);
      const plan = stored === null ? null : (JSON.parse(stored) as StoredPlan);
      const layout = plan === null ? null : await loadLayout(plan.layoutDigest);
      if (plan === null || source === null || layout === null) {
        throw new LayercastError(
          "source_gone",
          `the plan of reload ${content} is no longer kept; submit its checkpoint again`,
          { reload: content },
        );
      }
      return plans.set(content, { ...plan, layout, source: JSON.parse(source) as Source });
    },
  };
}
