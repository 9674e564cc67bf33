// A rank shows that it is in its fleet once Redis has taken its registration, and each sign of life; not before, and not when it fails.

import { expect, it } from "vitest";
import { beat, joinAtStart } from "../../worker/heartbeat.js";
import type { Rank } from "../../worker/rank.js";

/** What a rank does, in order; a call of the store named in `failing` rejects. */
function rankOn(failing: string | null, knowsIt = true) {
  const done: string[] = [];
  const call = (name: string) => async () => {
    if (name === failing) throw new Error("Redis is away");
    done.push(name);
  };
  const outline = {
    state: {
      ranks: knowsIt ? { "0/0": { redisRunId: "r", incarnation: "i", live: { generation: 2 } } } : {},
      active: "reload",
      reloads: { reload: { state: "loading" } },
      drained: {},
    },
    context: { redisRunId: "r" },
  };
  const store = { renewLease: call("lease"), transact: call("registration"), readOutline: async () => outline };
  const showRegistered = () => void done.push("shown");
  const arena = { liveState: () => ({ generation: 2 }) };
  const rank = { fleet: "f", key: "0/0", replica: 0, incarnation: "i", store, arena, showRegistered };
  return { rank: rank as unknown as Rank, done };
}

it("is shown when the registration has been taken, and not before", async () => {
  const { rank, done } = rankOn(null);
  await joinAtStart(rank, true, async () => {});
  expect(done).toEqual(["registration", "shown"]);
  const refused = rankOn("registration");
  await expect(joinAtStart(refused.rank, true, async () => {})).rejects.toThrow("away");
  expect(refused.done).toEqual([]);
});

it("is shown by each heartbeat that Redis takes, and by the one that registers again", async () => {
  const { rank, done } = rankOn(null);
  await beat(rank).catch(() => undefined);
  expect(done).toEqual(["lease", "shown"]);
  const forgotten = rankOn(null, false);
  await beat(forgotten.rank);
  expect(forgotten.done).toEqual(["registration", "shown"]);
  const away = rankOn("lease");
  await expect(beat(away.rank)).rejects.toThrow("away");
  expect(away.done).toEqual([]);
});
