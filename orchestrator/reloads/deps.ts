// What the functions of this folder work with.

import type { Redis } from "ioredis";
import type { Logger } from "pino";
import type { FleetStore } from "../fleet/fleet-store.js";
import type { PlanStore, ReloadPlan } from "../fleet/plan-store.js";
import type { RecordStore, StoredRequest } from "../fleet/record-store.js";
import type { PushSessionStore } from "../fleet/session-store.js";
import type { FleetState } from "../fleet/state.js";
import type { Queues } from "../queue/queues.js";
import type { CallEngines } from "./call-engines.js";
import type { Disk } from "./disk.js";
import type { Follower } from "./follow-reload.js";
import type { HookHosts } from "./hook-hosts.js";
import type { HeaderRoom } from "./push/header-room.js";
import type { Spool } from "./push/spool.js";
import type { ExportReader } from "./read-export.js";
import type { SourceFiles } from "./sources/source-work.js";
import type { Turns } from "./turns.js";

/** What it takes to drive reloads on. */
export interface DriveDeps {
  /** Of this process, among all orchestrators of all time. */
  name: string;
  store: FleetStore;
  queues: Pick<Queues, "addControl" | "addFlow" | "addSwaps" | "addBuckets" | "removeQueue">;
  plans: PlanStore;
  records: RecordStore;
  makePlan(request: StoredRequest, state: FleetState, reload: string): Promise<ReloadPlan>;
  disk: Disk;
  callEngines: CallEngines;
  sessions: PushSessionStore;
  spool: Spool;
  sources: SourceFiles;
  /** Buckets that this process is copying into the spool, by "reload/sequence". */
  spooling: Map<string, Promise<void>>;
  /** By fleet: whom this process has sent the swap jobs of which epoch. */
  swapsSent: Map<string, { epoch: number; incarnations: Set<string> }>;
  log: Logger;
}

/** And to answer for them. */
export interface ReloadDeps extends DriveDeps {
  redis: Redis;
  queues: Queues;
  follower: Follower;
  hookHosts: HookHosts;
  headerRoom: HeaderRoom;
  exports: ExportReader;
  /** By fleet: submissions of this process are written one after the other. */
  submitting: Turns;
}
