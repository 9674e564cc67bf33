// What a plan costs at full size: DeepSeek-V3 as it is, but for its weights. Each plan in a process of its own.

import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { startPrivateRedis } from "../../orchestrator/cli/local/redis-server.js";
import { type Case, check, type Row } from "./case.js";
import { writeDeepSeekHeaders } from "./deepseek-headers.js";
import type { PlanOrder, PlanReport } from "./plan-process.js";
import type { RankReport } from "./rank-programs.js";
import { median } from "./statistics.js";

const PLANS: readonly { what: string; order: PlanOrder }[] = [
  {
    what: "T=16, as-stored",
    order: { tensorParallelSize: 16, expertParallel: false, scheme: "as-stored", dtype: "auto" },
  },
  {
    what: "T=32 --ep, bfloat16, fp8-block",
    order: { tensorParallelSize: 32, expertParallel: true, scheme: "fp8-block", dtype: "bfloat16" },
  },
];
const RUNS = 3;

export const scale: Case = {
  name: "scale",
  says:
    "plans of DeepSeek-V3's headers, each in a fresh process; what one rank keeps of the layout, and its programs for all layers " +
    "of a pull and of a push; medians, and the highest peak",
  columns: [
    { key: "tensors", title: "tensors", decimals: 0 },
    { key: "skipped", title: "skipped", decimals: 0 },
    { key: "headers_ms", title: "headers ms", decimals: 0 },
    { key: "plan_ms", title: "plan ms", decimals: 0 },
    { key: "check_ms", title: "check ms", decimals: 0 },
    { key: "store_ms", title: "store ms", decimals: 0 },
    { key: "peak_mb", title: "peak MB", decimals: 0 },
    { key: "stored_mb", title: "in Redis MB", decimals: 2 },
    { key: "rank_ms", title: "rank ms", decimals: 0 },
    { key: "rank_mb", title: "rank MB", decimals: 1 },
    { key: "pull_ms", title: "pull ms", decimals: 0 },
    { key: "push_ms", title: "push ms", decimals: 0 },
    { key: "arrive_ms", title: "arrive ms", decimals: 0 },
    { key: "runs", title: "runs", decimals: 0 },
  ],
  async run({ reloads, directory, say }) {
    const checkpoint = join(directory, "deepseek");
    say("writing headers");
    const written = await writeDeepSeekHeaders(checkpoint);
    const redis = await startPrivateRedis({ directory: join(directory, "redis"), appendOnly: false });
    try {
      const rows: Row[] = [];
      for (const { what, order } of PLANS) {
        say(what);
        const reports: PlanReport[] = [];
        for (let run = 0; run < (reloads ?? RUNS); run++) reports.push(await planOnce(checkpoint, order, redis.url));
        rows.push(rowOf(what, reports, written));
      }
      return rows;
    } finally {
      await redis.stop();
    }
  },
};

async function planOnce(checkpoint: string, order: PlanOrder, redisUrl: string): Promise<PlanReport> {
  const program = join(import.meta.dirname, "plan-process.js");
  const args = ["--expose-gc", program, checkpoint, JSON.stringify(order), redisUrl];
  const { stdout } = await promisify(execFile)(process.execPath, args);
  return JSON.parse(stdout) as PlanReport;
}

function rowOf(what: string, reports: readonly PlanReport[], written: number): Row {
  const of = (key: Exclude<keyof PlanReport, "fault" | "rank">) => reports.map((report) => report[key]);
  const ofRank = (key: keyof RankReport) => reports.map(({ rank }) => rank[key]);
  const [first] = reports;
  const uncounted = reports.filter(({ tensors, used, skipped }) => tensors !== written || used + skipped !== written);
  return {
    what,
    values: {
      tensors: first?.tensors ?? null,
      skipped: first?.skipped ?? null,
      headers_ms: median(of("headersMs")),
      plan_ms: median(of("planMs")),
      check_ms: median(of("checkMs")),
      store_ms: median(of("storeMs")),
      peak_mb: Math.max(...of("peakBytes")) / 1e6,
      stored_mb: Math.max(...of("storedBytes")) / 1e6,
      rank_ms: median(ofRank("keptMs")),
      rank_mb: Math.max(...ofRank("keptBytes")) / 1e6,
      pull_ms: median(ofRank("pullMs")),
      push_ms: median(ofRank("pushMs")),
      arrive_ms: median(ofRank("arriveMs")),
      runs: reports.length,
    },
    checks: [
      check(
        "every tensor used or skipped",
        uncounted.map(({ used, skipped }) => `${used} used and ${skipped} skipped of ${written}`),
      ),
      check(
        "the plan check holds",
        reports.flatMap(({ fault }) => fault ?? []),
      ),
    ],
  };
}
