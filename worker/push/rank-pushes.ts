// What a rank needs to take what is pushed, besides its staging: the session that knows its buckets, the core, and who it is.

import type { NativeCore } from "../../native/native.js";
import type { WarningReport } from "../../orchestrator/contract/reload.js";
import type { PushSessions, Taker } from "../../orchestrator/fleet/session-store.js";
import type { Owner } from "../ledger.js";
import type { NativeWork } from "../native-work.js";
import type { Files, RankArena } from "../rank-arena.js";

export interface RankPushes {
  core: NativeCore;
  work: NativeWork;
  arena: RankArena;
  files: Files;
  sessions: PushSessions;
  /** Which rank of its replica. */
  rank: number;
  by: Taker;
  /** Whom a bucket waits for, as the fleet was when it was read last: who has come since is sent every bucket all the same. */
  expected: readonly Taker[];
  /** Once a reload and rank. */
  warn(owner: Owner, warning: WarningReport): Promise<void>;
}
