// A rank's place in its fleet: taken when it starts and when Redis comes back without it, kept by a heartbeat, which also
// looks whether the rank holds what it should.

import { LayercastError } from "../orchestrator/contract/errors.js";
import { livingElsewhere, type Registration, register } from "../orchestrator/fleet/rank-transitions.js";
import type { LiveArena, RankState } from "../orchestrator/fleet/state.js";
import { catchUpIfBehind } from "./catch-up.js";
import { type Rank, tellArena, undoOf } from "./rank.js";

/** The rank is taken for gone this long after its last sign of life, by Redis's clock. */
const LEASE_MS = 5_000;
const LOOK_EVERY_MS = 100;

/**
 * A start's registration. Where another worker's lease is valid and its arena elsewhere, that one may have died a moment ago: so
 * this waits for at most a lease's time, and then registers or says who lives (P9).
 */
export async function joinAtStart(rank: Rank, takeOver: boolean, delay: (ms: number) => Promise<void>): Promise<void> {
  for (let since: number | null = null; !takeOver; await delay(LOOK_EVERY_MS)) {
    const known = await rank.store.readOutline(rank.fleet);
    if (known === null || livingElsewhere(known.state, rank, known.context) === null) break;
    since ??= known.context.now;
    if (known.context.now - since > LEASE_MS) break;
  }
  await joinFleet(rank, takeOver);
}

/** Registration and lease are one write: a refused worker has not touched the other's lease. */
async function joinFleet(rank: Rank, takeOver: boolean): Promise<void> {
  const { fleet, key, incarnation, lock, arena } = rank;
  await rank.store.transact(fleet, (draft, context, beside) => {
    beside.lease = { rank: key, incarnation, ttlMs: LEASE_MS };
    const registration: Registration = {
      key,
      replica: rank.replica,
      rank: rank.rank,
      replicas: rank.replicas,
      tensorParallelSize: rank.tensorParallelSize,
      expertParallel: rank.expertParallel,
      incarnation,
      host: rank.host,
      pid: process.pid,
      device: rank.device,
      version: rank.version,
      threads: rank.core.threads,
      live: arena.liveState(),
      undo: undoOf(rank),
      highestEpoch: rank.staging.ledger().highestEpoch,
      arenaPath: arena.livePath,
      controlPath: arena.controlPath,
      lock,
      takeOver,
      trouble: null,
      engines: rank.engines.leases(),
    };
    register(draft, registration, context);
  });
  rank.showRegistered();
}

/** One sign of life. Throws `rank_lost` when another incarnation has registered: then this process must end. */
export async function beat(rank: Rank): Promise<void> {
  const known = await rank.store.readOutline(rank.fleet);
  const registered = known?.state.ranks[rank.key];
  if (known === null || registered === undefined || registered.redisRunId !== known.context.redisRunId) {
    return joinFleet(rank, false); // Redis has come back (P13)
  }
  if (registered.incarnation !== rank.incarnation) {
    throw new LayercastError("rank_lost", `another incarnation of rank ${rank.key} has registered`, { rank: rank.key });
  }
  await rank.store.renewLease(rank.fleet, rank.key, rank.incarnation, LEASE_MS);
  rank.showRegistered();
  if (known.state.active === null && isUntold(registered, rank.arena.liveState())) await tellArena(rank, null);
  await catchUpIfBehind(rank, known.state);
}

/** A report that Redis did not take while the reload was still under way: nobody asks for it again once that has ended (P10). */
function isUntold(registered: RankState, live: LiveArena): boolean {
  return live.generation % 2 === 0 && live.generation !== registered.live.generation;
}
