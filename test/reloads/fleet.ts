// A fleet state for tests of the protocol: ranks that register, prepare and swap as told, and a clock that only moves when
// the test moves it.

import { type RankKey, rankKey } from "../../orchestrator/contract/jobs.js";
import { advance } from "../../orchestrator/fleet/advance.js";
import { register, reportArena } from "../../orchestrator/fleet/rank-transitions.js";
import {
  beginLoading,
  decide,
  handInToken,
  heldBy,
  type NewReload,
  submit,
} from "../../orchestrator/fleet/reload-transitions.js";
import {
  activeReload,
  type Context,
  type FleetState,
  newFleet,
  type ReloadRecord,
} from "../../orchestrator/fleet/state.js";

export interface TestFleet {
  state: FleetState;
  context: Context;
  now: number;
  /** The life of Redis. */
  redisRunId: string;
  /** Incarnations whose lease has run out. */
  expired: Set<string>;
  /** Applies a transition as the store does: on a draft, followed by what follows by itself. */
  apply<Result>(transition: (draft: FleetState, context: Context) => Result): Result;
  join(rank: number, incarnation: string, live?: FleetState["ranks"][RankKey]["live"]): void;
  joinAs(replica: number, rank: number, incarnation: string, live?: FleetState["ranks"][RankKey]["live"]): void;
  submit(id: string, more?: Partial<NewReload>): ReloadRecord;
  load(): void;
  prepare(rank: number, digest?: string): void;
  decide(): void;
  /** Where Redis's disk is still to be waited for. */
  decideInMemory(): void;
  swap(rank: number): void;
  /** Submitted, loaded, and prepared by all ranks of the first replica. */
  stage(id: string, more?: Partial<NewReload>): void;
  /** The whole way. */
  commit(id: string, more?: Partial<NewReload>): void;
  active(): ReloadRecord;
}

export const LAYOUT = "layout";

/** Its ranks have joined as incarnations "0.1", "1.1", ...; those of a second replica as "1/0.1", ... */
export function testFleet(tensorParallelSize = 2, replicas = 1): TestFleet {
  const expired = new Set<string>();
  const fleet: TestFleet = {
    state: newFleet("f"),
    now: 1_000,
    redisRunId: "first",
    expired,
    get context() {
      return {
        now: fleet.now,
        redisRunId: fleet.redisRunId,
        leaseValid: (_: RankKey, incarnation: string) => !expired.has(incarnation),
      };
    },
    apply(transition) {
      const draft = structuredClone(fleet.state);
      const result = transition(draft, fleet.context);
      advance(draft, fleet.context);
      fleet.state = draft;
      return result;
    },
    join: (rank, incarnation, live) => fleet.joinAs(0, rank, incarnation, live),
    joinAs(replica, rank, incarnation, live = { state: "empty", generation: 0, held: null }) {
      const key = rankKey(replica, rank);
      const place = { host: "h", pid: 1, device: "cpu", arenaPath: "", controlPath: "", lock: key, trouble: null };
      const registration = {
        key,
        replica,
        rank,
        incarnation,
        live,
        undo: null,
        highestEpoch: live.held?.epoch ?? 0,
        ...place,
        replicas,
        tensorParallelSize,
        expertParallel: false,
        takeOver: false,
        engines: null,
      };
      fleet.apply((draft, context) => register(draft, registration, context));
    },
    submit: (id, more = {}) =>
      fleet.apply((draft, context) =>
        submit(
          draft,
          {
            id,
            kind: "reload",
            submissionId: id,
            content: id,
            weightVersion: id,
            priority: 0,
            coalesce: "never",
            inPlace: false,
            layoutDigest: null,
            deadlineMs: 1_000,
            healMs: 1_000,
            ...more,
          },
          context,
        ),
      ),
    active() {
      const record = activeReload(fleet.state);
      if (record === null) throw new Error("no reload is active");
      return record;
    },
    load() {
      const { id, epoch } = fleet.active();
      fleet.apply((draft, { now }) => beginLoading(draft, id, epoch ?? 0, LAYOUT, now));
    },
    prepare(rank, digest = "d") {
      const { id, epoch } = fleet.active();
      const key = rankKey(0, rank);
      const current = fleet.state.ranks[key];
      const token = {
        digest,
        epoch: epoch ?? 0,
        generation: current?.live.generation ?? 0,
        finalizeMs: 0,
        at: fleet.now,
      };
      fleet.apply((draft) => handInToken(draft, id, key, { ...token, incarnation: current?.incarnation ?? "" }));
    },
    decide() {
      const { id, epoch } = fleet.active();
      fleet.apply((draft, context) => decide(draft, id, epoch ?? 0, context, true));
    },
    decideInMemory() {
      const { id, epoch } = fleet.active();
      fleet.apply((draft, context) => decide(draft, id, epoch ?? 0, context, false));
    },
    swap(rank) {
      const key = rankKey(0, rank);
      const current = fleet.state.ranks[key];
      const held = heldBy(fleet.active());
      const undo = current?.live.held ?? null;
      const live = { state: "live" as const, generation: (current?.live.generation ?? 0) + 2, held };
      fleet.apply((draft, { now }) =>
        reportArena(draft, key, current?.incarnation ?? "", { live, undo, swap: { startedAt: now - 2, endedAt: now } }),
      );
    },
    stage(id, more = {}) {
      fleet.submit(id, more);
      fleet.load();
      for (let rank = 0; rank < tensorParallelSize; rank++) fleet.prepare(rank);
    },
    commit(id, more = {}) {
      fleet.stage(id, more);
      fleet.decide();
      for (let rank = 0; rank < tensorParallelSize; rank++) fleet.swap(rank);
    },
  };
  for (let replica = 0; replica < replicas; replica++) {
    for (let rank = 0; rank < tensorParallelSize; rank++) {
      fleet.joinAs(replica, rank, replica === 0 ? `${rank}.1` : `${replica}/${rank}.1`);
    }
  }
  return fleet;
}
