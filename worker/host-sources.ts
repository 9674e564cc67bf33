// A reload's source files as this host has them, from the first look to the end.

import { requireUntouched, verifyFiles } from "../orchestrator/checkpoint/checkpoint-file.js";
import { filesOnThisHost } from "../orchestrator/checkpoint/host-files.js";
import type { CheckpointFile } from "../orchestrator/contract/plan.js";
import type { ReloadPlan } from "../orchestrator/fleet/plan-store.js";
import type { Owner } from "./ledger.js";
import type { Sources } from "./rank.js";

/** The reload at hand, and those that a rank may still be busy with. */
const KEPT = 4;

/** `redisNow`: Redis's clock, ms; `pin` hears which files the live bytes came from. */
export function openSources(redisNow: () => Promise<number>, pin: (files: readonly CheckpointFile[]) => void): Sources {
  const seen = new Map<string, Promise<CheckpointFile[]>>();

  async function look({ source, plannedAt }: ReloadPlan): Promise<CheckpointFile[]> {
    return filesOnThisHost(source.files, plannedAt === undefined ? null : (await redisNow()) - plannedAt);
  }

  /** Whoever comes meanwhile waits for the same look; one that failed is made again. */
  function firstLook(owner: Owner, plan: ReloadPlan): Promise<CheckpointFile[]> {
    const key = nameOf(owner);
    const known = seen.get(key);
    if (known !== undefined) return known;
    const files = look(plan);
    seen.set(key, files);
    files.catch(() => seen.delete(key));
    const [oldest = key] = seen.keys();
    if (seen.size > KEPT) seen.delete(oldest);
    return files;
  }

  return {
    async onThisHost(owner, plan) {
      const files = await firstLook(owner, plan);
      return { ...plan, source: { ...plan.source, files } };
    },
    verify: verifyFiles,
    requireUntouched,
    becameLive(owner, plan) {
      if (plan === null) return pin([]);
      const files = seen.get(nameOf(owner)) ?? Promise.resolve(plan.source.files);
      void files.then(pin, () => undefined);
    },
  };
}

const nameOf = ({ reload, epoch }: Owner) => `${reload}@${epoch}`;
