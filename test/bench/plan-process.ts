// One plan in a process of its own, so that its peak memory is this plan's and nothing is compiled yet: reads the headers, plans,
// checks, stores, makes one rank's programs, and prints one line of JSON. Arguments: the directory, a PlanOrder as JSON, the Redis.

import { readCheckpointTable } from "../../orchestrator/checkpoint/checkpoint-table.js";
import { KEYS } from "../../orchestrator/contract/jobs.js";
import { openPlanStore } from "../../orchestrator/fleet/plan-store.js";
import { connectRedis } from "../../orchestrator/host/redis.js";
import { checkPlan } from "../../orchestrator/planner/check/check-plan.js";
import { groupLayers } from "../../orchestrator/planner/group-layers.js";
import { type PlanRequest, planReload } from "../../orchestrator/planner/plan-reload.js";
import { measureRank, type RankReport } from "./rank-programs.js";

export type PlanOrder = Pick<PlanRequest, "tensorParallelSize" | "expertParallel" | "scheme" | "dtype">;

export interface PlanReport {
  tensors: number;
  used: number;
  skipped: number;
  /** What the check found wrong. */
  fault: string | null;
  headersMs: number;
  planMs: number;
  checkMs: number;
  storeMs: number;
  storedBytes: number;
  peakBytes: number;
  rank: RankReport;
}

const RELOAD = "scale";

async function measure(directory: string, order: PlanOrder, redisUrl: string): Promise<PlanReport> {
  const redis = connectRedis(redisUrl, "command");
  await redis.flushall(); // the server is this case's own
  const times: number[] = [performance.now()];
  const lap = () => void times.push(performance.now());
  const { table, config } = await readCheckpointTable(directory, { allowedRoots: [directory] });
  lap();
  const plan = planReload({ table, config, ignore: [], ...order });
  lap();
  const fault = faultOf(() => checkPlan(plan, table));
  lap();
  const { skipped, ...kept } = plan;
  const layerJobs = groupLayers(plan, "auto");
  const retry = { attempts: 5, backoffMs: 200 };
  const asked = { allowNonFinite: false, stagingPlace: "auto", retry } as const;
  const limits = { maxBufferBytes: null, warnBufferBytes: 0 };
  const delivery = { kind: "safetensors", base: null, limits, retainExport: false } as const;
  await openPlanStore(redis).save(RELOAD, { ...kept, layerJobs, ...asked, ...delivery });
  lap();
  const peakBytes = process.resourceUsage().maxRSS * 1024;
  const storedBytes = await sizeOf(redis, plan.mappingDigest);
  redis.disconnect();
  const [headersMs = 0, planMs = 0, checkMs = 0, storeMs = 0] = times.slice(1).map((at, lap) => at - (times[lap] ?? 0));
  return {
    tensors: table.tensors.size,
    used: plan.layout.checkpointTensors.length,
    skipped: skipped.length,
    fault,
    ...{ headersMs, planMs, checkMs, storeMs, storedBytes },
    peakBytes,
    rank: measureRank(plan),
  };
}

function faultOf(check: () => void): string | null {
  try {
    check();
    return null;
  } catch (error) {
    return String(error);
  }
}

async function sizeOf(redis: ReturnType<typeof connectRedis>, mappingDigest: string): Promise<number> {
  const sizes = await Promise.all([
    redis.strlen(KEYS.mapping(mappingDigest)),
    redis.strlen(KEYS.source(RELOAD)),
    redis.hstrlen(KEYS.reload(RELOAD), "plan"),
  ]);
  return sizes.reduce((sum, size) => sum + size, 0);
}

const [directory = "", order = "{}", redisUrl = ""] = process.argv.slice(2);
console.log(JSON.stringify(await measure(directory, JSON.parse(order) as PlanOrder, redisUrl)));
