// Whoever tends a push takes it on from what is recorded of it: what one orchestrator did not come to, another does.

import { existsSync, readdirSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { describe, expect, it } from "vitest";
import { LayercastError } from "../../../orchestrator/contract/errors.js";
import { KEYS } from "../../../orchestrator/contract/jobs.js";
import { nextStep } from "../../../orchestrator/fleet/advance.js";
import { cancel } from "../../../orchestrator/fleet/reload-transitions.js";
import { openPushSessions } from "../../../orchestrator/fleet/session-store.js";
import type { Spool } from "../../../orchestrator/reloads/push/spool.js";
import { trimSpool } from "../../../orchestrator/reloads/push/trim-spool.js";
import { pendingReason } from "../../../orchestrator/reloads/view.js";
import { bucketBytes, FLEET, NAMES, type TestPush, usePushes } from "./open-push.js";

const world = usePushes("tend-session");

const [FIRST = "", SECOND = "", THIRD = ""] = NAMES;

const incarnationOf = async (push: TestPush, rank: number) =>
  (await push.fleet()).ranks[`0/${rank}`]?.incarnation ?? "";
const spoolFiles = ({ id }: TestPush) => {
  const own = join(world.spoolDirectory, id);
  return existsSync(own) ? readdirSync(own) : [];
};
const reasonOf = async ({ deps, id, record }: TestPush) => {
  const known = await deps.store.read(FLEET);
  return known === null || known.state.active !== id ? null : pendingReason(await record(), known.state, known.context);
};

/** A push one orchestrator of which does this when it should copy a bucket. */
function keeping(
  push: TestPush,
  keep: (spool: Spool, ...args: Parameters<Spool["keep"]>) => ReturnType<Spool["keep"]>,
) {
  const { spool } = push.deps;
  push.deps.spool = { ...spool, keep: (...args) => keep(spool, ...args) };
}

describe("jobs", () => {
  it("go to each incarnation once, whoever tends and however often", async () => {
    const push = await world.open();
    const other = await push.elsewhere();
    await push.send(FIRST);
    for (const each of [push, other, push]) await each.tend();
    const jobs = await Promise.all([0, 1].map(async (rank) => `${await incarnationOf(push, rank)} 0-0`));
    expect([...push.jobs].sort()).toEqual(jobs.sort());
    await push.spooled();
  });

  it("of everything that has come go to a rank that comes anew, what is consumed included", async () => {
    const push = await world.open();
    for (const name of [FIRST, SECOND]) await push.send(name);
    await push.spooled();
    await push.takeByAll(0);
    expect(await push.state(0)).toBe("consumed");
    push.jobs.length = 0;
    await push.restart(1);
    await push.tend();
    const incarnation = await incarnationOf(push, 1);
    expect(push.jobs).toEqual([`${incarnation} 0-0`, `${incarnation} 1-0`]);
    expect(await push.state(0)).toBe("consumed");
  });

  it("are only of what can be read", async () => {
    const push = await world.open({ retain: "trainer" });
    for (const name of [FIRST, SECOND, THIRD]) await push.send(name);
    for (const sequence of [0, 1]) await push.takeByAll(sequence);
    await push.restart(0);
    push.jobs.length = 0;
    await push.tend();
    expect(push.jobs).toEqual([`${await incarnationOf(push, 0)} 2-0`]);
    await push.send(SECOND);
    expect(push.jobs.filter((job) => job.endsWith(" 1-1"))).toHaveLength(2);
  });

  it("are sent by the sweep when who accepted a bucket did not come to it", async () => {
    const push = await world.open();
    const dead = await push.elsewhere();
    dead.deps.queues.addBuckets = () => Promise.reject(new Error("killed"));
    expect(await dead.send(FIRST)).toBe(0);
    expect(push.jobs).toEqual([]);
    await push.tend();
    expect(push.jobs).toHaveLength(2);
    await Promise.all([push.spooled(), dead.spooled()]);
  });

  it("begin when engines stand still, where the push writes in place", async () => {
    const url = { urls: ["http://engine/x"], method: "POST", body: null };
    const push = await world.submit({}, { install: IN_PLACE });
    await push.deps.store.transact(FLEET, (draft) => {
      draft.hooks = { pause: url, resume: url, timeoutMs: 1_000, onFailure: "abort" };
    });
    for (const rank of [0, 1]) await push.restart(rank);
    await world.start(push);
    expect(await reasonOf(push)).toBe("waiting for engines to pause");
    const early = push.send(FIRST);
    await expect(early).rejects.toMatchObject({ code: "backpressure", details: { state: "loading" } });
    await expect(early).rejects.toThrow("waiting for engines to pause");
    await push.deps.store.transact(FLEET, (draft, { now }) => {
      const record = draft.reloads[push.id];
      if (record !== undefined) record.times.signalled = now;
    });
    await push.send(FIRST);
    expect(push.jobs).toHaveLength(2);
    await push.spooled();
  });
});

const IN_PLACE = { mode: "in_place", staging: "auto", allow_new_layout: false, allow_non_finite: false } as const;

describe("a bucket's copy", () => {
  it("is made by whoever tends, when who accepted it did not come to it; and then it may be consumed", async () => {
    const push = await world.open();
    keeping(push, () => Promise.reject(new Error("killed")));
    await push.send(FIRST);
    await push.spooled();
    await push.takeByAll(0);
    expect(await push.state(0)).toBe("pending");
    const other = await push.elsewhere();
    await other.tend();
    await other.spooled();
    expect(await push.state(0)).toBe("consumed");
    expect(await push.events("bucket")).toEqual([{ bucket: 0, state: "consumed" }]);
  });

  it("is one, though two orchestrators make one at once", async () => {
    const push = await world.open();
    const other = await push.elsewhere();
    keeping(push, async (spool, ...args) => {
      await other.tend();
      await other.spooled();
      return spool.keep(...args);
    });
    await push.send(FIRST);
    await push.spooled();
    const { file, spooled } = await push.deps.sessions.bucket(push.id, 0);
    expect([spooled, spoolFiles(push)]).toEqual([true, [basename(file.path)]]);
  });

  it("is one, though the slower of two finds the trainer's file written over: that is the trainer's right by then", async () => {
    const push = await world.open();
    const slow = await push.elsewhere();
    keeping(slow, async (spool, ...args) => {
      const kept = await spool.keep(...args);
      await push.spooled();
      await push.takeByAll(0);
      expect(await push.state(0)).toBe("consumed");
      writeFileSync(args[1], "the trainer's again");
      return kept;
    });
    keeping(push, async (spool, ...args) => {
      await slow.tend();
      return spool.keep(...args);
    });
    await push.send(FIRST);
    await push.spooled(); // the slow one has begun by then
    await slow.spooled();
    expect((await push.record()).state).toBe("loading");
    expect(spoolFiles(push)).toHaveLength(1);
  });

  it("that cannot be the one accepted, for that was written over before it was consumed, fails the push by name", async () => {
    const push = await world.open();
    keeping(push, async (spool, ...args) => {
      const kept = await spool.keep(...args);
      writeFileSync(args[1], "too early");
      return kept;
    });
    await push.send(FIRST);
    await push.spooled();
    expect(await push.record()).toMatchObject({
      state: "failed",
      error: { code: "source_changed" },
      liveChanged: false,
    });
    expect(spoolFiles(push)).toEqual([]);
  });

  it("for which there is no space fails the push with that; what may work later is tried again", async () => {
    const push = await world.open();
    keeping(push, () => Promise.reject(new LayercastError("io_error", "the disk is slow to wake", {})));
    await push.send(FIRST);
    await push.spooled();
    expect((await push.record()).state).toBe("loading");
    keeping(push, () => Promise.reject(new LayercastError("out_of_memory", "there is no space", {})));
    await push.tend();
    await push.spooled();
    expect(await push.record()).toMatchObject({ state: "failed", error: { code: "out_of_memory" } });
  });

  it("is not made when the trainer retains", async () => {
    const push = await world.open({ retain: "trainer" });
    await push.send(FIRST);
    await push.tend();
    await push.spooled();
    expect(spoolFiles(push)).toEqual([]);
    await push.takeByAll(0);
    expect(await push.state(0)).toBe("consumed");
  });

  it("goes when its push has ended, and not before; what this Redis does not know is left alone", async () => {
    const push = await world.open();
    await push.send(FIRST);
    await push.spooled();
    await push.deps.spool.keep("another", push.write(bucketBytes([FIRST])), false);
    await trimSpool(push.deps);
    expect(spoolFiles(push)).toHaveLength(1);
    await push.deps.store.transact(FLEET, (draft, { now }) => cancel(draft, push.id, now));
    await trimSpool(push.deps);
    expect(readdirSync(world.spoolDirectory)).toEqual(["another"]);
  });
});

describe("a bucket that nobody has any more", () => {
  async function withLost(): Promise<TestPush> {
    const push = await world.open({ retain: "trainer" });
    await push.put(7, bucketBytes([FIRST]));
    await push.send(SECOND);
    for (const sequence of [0, 1]) await push.takeByAll(sequence);
    await push.restart(1);
    await push.tend();
    return push;
  }

  it("is asked for again in the record, the reason and the events, once", async () => {
    const push = await withLost();
    await (await push.elsewhere()).tend();
    expect((await push.record()).push?.wanted).toEqual([7, 8]);
    expect(await reasonOf(push)).toBe("waiting for wanted buckets 7, 8 to be sent again");
    expect((await push.events("bucket")).slice(2)).toEqual([7, 8].map((bucket) => ({ bucket, state: "wanted" })));
  });

  it("is asked for no longer once it has come, and is consumed again when the new rank has it", async () => {
    const push = await withLost();
    expect(await push.send(FIRST)).toBe(0);
    expect((await push.record()).push?.wanted).toEqual([8]);
    await push.take(0, 1);
    expect(await push.state(0)).toBe("consumed");
    await push.send(SECOND);
    expect((await push.record()).push?.wanted).toEqual([]);
    expect(await reasonOf(push)).toBe("waiting for buckets, and for the push to be finished");
  });

  it("may be sent again after the push was finished", async () => {
    const push = await world.open({ retain: "trainer", max_pending_buckets: 100 });
    await push.send(...NAMES);
    await push.takeByAll(0);
    await push.deps.sessions.finish(push.id, 1);
    await push.tend();
    await push.restart(0);
    await push.tend();
    expect(await push.record()).toMatchObject({ push: { finished: true, wanted: [0] } });
    expect(await push.send(...NAMES)).toBe(0);
    expect(await push.record()).toMatchObject({ push: { finished: true, wanted: [] } });
  });

  it("and is not sent again before the deadline is why the push fails: source_gone, with the numbers", async () => {
    const push = await withLost();
    await push.deps.store.transact(FLEET, (draft) => {
      const record = draft.reloads[push.id];
      if (record !== undefined) record.deadlineAt = 1;
    });
    const { state, error, liveChanged } = await push.record();
    expect({ state, liveChanged, error }).toMatchObject({
      ...{ state: "failed", liveChanged: false },
      error: { code: "source_gone", details: { buckets: [7, 8] }, retryable: false },
    });
    expect(error?.message).toMatch(/^buckets 7, 8 were needed again and not sent again before the deadline/);
  });
});

describe("a trainer that sends nothing", () => {
  const silent = (push: TestPush) => world.redis.hset(KEYS.session(push.id), "touched", "1");

  it("is not waited for longer than idle_ms: its push fails, and nothing live has changed", async () => {
    const push = await world.open({ idle_ms: 5_000 });
    await push.send(FIRST);
    await push.spooled();
    await push.tend();
    expect((await push.record()).state).toBe("loading");
    await silent(push);
    await push.tend();
    const { state, error, liveChanged } = await push.record();
    expect({ state, liveChanged, error }).toMatchObject({
      ...{ state: "failed", liveChanged: false },
      error: { code: "deadline_exceeded", details: { idle_ms: 5_000, buckets: 1 } },
    });
    expect(error?.message).toMatch(
      /the trainer has sent nothing for \d+ ms, .* opened with idle_ms 5000; open another/,
    );
  });

  it("is there as long as it asks, though it is told to wait", async () => {
    const push = await world.open({ idle_ms: 5_000, max_pending_buckets: 1 });
    await push.send(FIRST);
    await push.spooled();
    await silent(push);
    await expect(push.send(SECOND)).rejects.toMatchObject({ code: "backpressure" });
    await push.tend();
    await silent(push);
    await expect(push.put(4, bucketBytes([SECOND]))).rejects.toMatchObject({ code: "backpressure" });
    await push.tend();
    await silent(push);
    await push.deps.sessions.taken(push.id, 0, null, []);
    await push.tend();
    expect((await push.record()).state).toBe("loading");
  });

  it("is not waited for any more once it has finished", async () => {
    const push = await world.open({ idle_ms: 1 });
    await push.deps.sessions.finish(push.id, 0);
    for (const _ of ["its record is told", "its record says so"]) {
      await silent(push);
      await push.tend();
    }
    expect((await push.record()).state).toBe("loading");
  });
});

describe("who tends", () => {
  it("finishes in the record what is finished in the session: whoever finished it died in between", async () => {
    const push = await world.open();
    await push.deps.sessions.finish(push.id, 0);
    expect(nextStep(await push.fleet())).toBeNull();
    await push.tend();
    expect((await push.record()).push?.finished).toBe(true);
    expect(nextStep(await push.fleet())).toMatchObject({ kind: "enqueue", ranks: ["0/0", "0/1"] });
  });

  it("does nothing for a push that is not open yet, or has ended", async () => {
    const push = await world.submit();
    await push.tend();
    for (const rank of [0, 1]) await push.restart(rank);
    await push.tend();
    expect(await openPushSessions(world.redis).summary(push.id)).toBeNull();
    await world.start(push);
    await push.send(FIRST);
    await push.spooled();
    await push.deps.store.transact(FLEET, (draft, { now }) => cancel(draft, push.id, now));
    const before = [await push.everything(), push.jobs.length];
    await push.restart(0);
    await push.tend();
    expect([await push.everything(), push.jobs.length]).toEqual(before);
  });
});
