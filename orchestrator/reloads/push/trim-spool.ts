// What a push kept is given up when its reload has ended: at once by the orchestrator that ends it; of a commit, which ranks write,
// and when that orchestrator is gone, by the sweep.

import { KEYS } from "../../contract/jobs.js";
import { isTerminal, type ReloadRecord } from "../../fleet/state.js";
import type { ReloadDeps } from "../deps.js";

/** Reloads that this Redis does not know are another's, and left alone. */
export async function trimSpool({ redis, spool }: Pick<ReloadDeps, "redis" | "spool">): Promise<void> {
  for (const reload of await spool.reloads()) {
    const stored = await redis.hget(KEYS.reload(reload), "record");
    if (stored !== null && isTerminal(JSON.parse(stored) as ReloadRecord)) await spool.remove(reload);
  }
}
