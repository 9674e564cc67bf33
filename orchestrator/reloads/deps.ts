// What the functions of this folder work with.

import type { Redis } from "ioredis";
import type { Logger } from "pino";
import type { Queues } from "../queue/queues.js";
import type { FleetStore } from "./fleet-store.js";
import type { Follower } from "./follow-reload.js";

export interface ReloadDeps {
  redis: Redis;
  store: FleetStore;
  queues: Queues;
  follower: Follower;
  /** Real paths that a source must lie under. */
  sourceRoots: string[];
  /** By fleet: whom this process has sent the swap jobs of which epoch. */
  swapsSent: Map<string, { epoch: number; incarnations: Set<string> }>;
  log: Logger;
}
