// A push session in Redis: each step is one, whoever takes it and however often.

import fc from "fast-check";
import type { Redis } from "ioredis";
import { beforeEach, describe, expect, it } from "vitest";
import { KEYS } from "../../../orchestrator/contract/jobs.js";
import type { CheckpointFile } from "../../../orchestrator/contract/plan.js";
import {
  type NewBucket,
  openPushSessions,
  type PushSessionStore,
  type Taker,
} from "../../../orchestrator/fleet/session-store.js";
import { expectLayercastRejection } from "../../checkpoint/expect-error.js";
import { usePrivateRedis } from "../../private-redis.js";

const R = "r1";
const MANY = 1_000;

let redis: Redis;
let sessions: PushSessionStore;
usePrivateRedis("push-session", (opened) => {
  redis = opened;
});
beforeEach(() => {
  sessions = openPushSessions(redis);
});

const fileAt = (path: string): CheckpointFile => ({
  ...{ path, sizeBytes: 10, mtimeNs: "1", inode: "1", headerDigest: "d" },
});

/** Rows [from, to) of a checkpoint tensor. */
type Rows = [tensor: number, from: number, to: number];

function bucketOf(rows: readonly Rows[], more: Partial<NewBucket> = {}): NewBucket {
  const pieces = rows.map(([tensor, from, to]) => ({ tensor, firstRow: from, rows: to - from, offset: 100 }));
  const held = { pieces, bytes: 8, tensors: rows.length, contentKey: JSON.stringify(rows) };
  return { number: null, ...held, file: fileAt("/trainer"), immutable: false, spooled: false, ...more };
}

const accept = (rows: readonly Rows[], more?: Partial<NewBucket>, most = MANY) =>
  sessions.accept(R, bucketOf(rows, more), most);
const accepted = (sequence: number) => ({ kind: "accepted", sequence });
const spooled = (sequence: number, delivery = 0) => sessions.spooled(R, { sequence, delivery }, fileAt("/spool"));
const stateOf = async (sequence: number) => (await sessions.bucket(R, sequence)).state;

const A: Taker = { rank: "0/0", incarnation: "a.1" };
const B: Taker = { rank: "0/1", incarnation: "b.1" };
const NEW_B: Taker = { ...B, incarnation: "b.2" };

async function takenBy(sequence: number, takers: readonly Taker[], expected: readonly Taker[] = takers): Promise<void> {
  for (const taker of takers) await sessions.taken(R, sequence, taker, expected);
}

async function events(): Promise<unknown[]> {
  const entries = await redis.xrange(KEYS.events(R), "-", "+");
  return entries.map(([, [, name, , payload]]) => [name, JSON.parse(payload ?? "null")]);
}

/** All that is kept of the session but when it was touched. */
async function everything(): Promise<unknown> {
  const { touched: _, ...session } = await redis.hgetall(KEYS.session(R));
  return [session, await redis.hgetall(KEYS.sessionRows(R)), await redis.hgetall(KEYS.sessionTaken(R)), await events()];
}

/** What is refused leaves all as it was. */
async function refused(rows: readonly Rows[], answer: unknown, more?: Partial<NewBucket>, most = MANY): Promise<void> {
  const before = await everything();
  expect(await accept(rows, more, most)).toEqual(answer);
  expect(await everything()).toEqual(before);
}

describe("accepting", () => {
  beforeEach(() => sessions.open(R, "spool"));

  it("gives sequences in order of acceptance, and numbers after the highest that the trainer gave", async () => {
    expect(await accept([[0, 0, 1]])).toEqual(accepted(0));
    expect(await accept([[1, 0, 1]], { number: 7 })).toEqual(accepted(1));
    expect(await accept([[2, 0, 1]], { number: 3 })).toEqual(accepted(2));
    expect(await accept([[3, 0, 1]])).toEqual(accepted(3));
    const numbers = [0, 1, 2, 3].map(async (sequence) => (await sessions.bucket(R, sequence)).number);
    expect(await Promise.all(numbers)).toEqual([0, 7, 3, 8]);
    expect(await sessions.byNumber(R, 8)).toMatchObject({ sequence: 3, delivery: 0, state: "pending" });
    expect(await sessions.byNumber(R, 4)).toBeNull();
    expect(await sessions.count(R)).toBe(4);
  });

  it("keeps what the bucket holds as it came", async () => {
    const rows: Rows[] = [
      [0, 2, 5],
      [4, 0, 9],
    ];
    await accept(rows, { immutable: true, bytes: 99, tensors: 3 });
    expect(await sessions.bucket(R, 0)).toEqual({
      ...{ sequence: 0, number: 0, delivery: 0, state: "pending", spooled: false, immutable: true, isReadable: true },
      ...{ bytes: 99, tensors: 3, file: fileAt("/trainer"), pieces: bucketOf(rows).pieces },
    });
  });

  it("takes rows once: what overlaps is refused with the tensor and the bucket that has them", async () => {
    await accept([[0, 0, 4]]);
    await accept([[0, 8, 12]]);
    await refused(
      [
        [1, 0, 5],
        [0, 7, 9],
      ],
      { kind: "overlap", tensor: 0, sequence: 1 },
    );
    await refused([[0, 3, 5]], { kind: "overlap", tensor: 0, sequence: 0 });
    expect(await accept([[0, 4, 8]])).toEqual(accepted(2));
    expect(await sessions.rows(R)).toEqual(new Map([[0, [{ from: 0, to: 12 }]]]));
  });

  it("knows a bucket that was sent before, whatever its number's place in the order", async () => {
    await accept([[0, 0, 4]], { number: 5 });
    await refused([[0, 0, 4]], { kind: "known", sequence: 0 });
    await refused([[0, 0, 4]], { kind: "known", sequence: 0 }, { number: 5, file: fileAt("/elsewhere") });
    await refused([[0, 0, 4]], { kind: "other_number", sequence: 0 }, { number: 6 });
    await refused([[1, 0, 4]], { kind: "number_taken", sequence: 0 }, { number: 5 });
  });

  it("takes no more that are not consumed than it may, and knows what it has all the same", async () => {
    await accept([[0, 0, 1]], {}, 2);
    await accept([[1, 0, 1]], {}, 2);
    await refused([[2, 0, 1]], { kind: "full" }, {}, 2);
    await refused([[0, 0, 1]], { kind: "known", sequence: 0 }, {}, 2);
    await spooled(0);
    await takenBy(0, [A]);
    expect(await accept([[2, 0, 1]], {}, 2)).toEqual(accepted(2));
  });

  it("takes nothing new once it is finished, and that only if nothing has come since the caller looked", async () => {
    await accept([[0, 0, 1]]);
    expect(await sessions.finish(R, 0)).toBe(false);
    expect(await accept([[1, 0, 1]])).toEqual(accepted(1));
    expect(await sessions.finish(R, 2)).toBe(true);
    await refused([[2, 0, 1]], { kind: "finished" });
    await refused([[0, 0, 1]], { kind: "known", sequence: 0 });
    expect(await sessions.finish(R, 7)).toBe(true);
  });

  it("has all rows of a tensor in one dtype, which need not be the planned one", async () => {
    const inDType = (rows: Rows[], dtype?: "F16" | "F32") => {
      const { pieces } = bucketOf(rows);
      return {
        pieces: pieces.map((piece) => ({ ...piece, ...(dtype && { dtype }) })),
        contentKey: JSON.stringify([rows, dtype]),
      };
    };
    const [first, second, third]: Rows[][] = [[[0, 0, 4]], [[0, 4, 8]], [[1, 0, 4]]];
    expect(await accept(first ?? [], inDType(first ?? [], "F32"))).toEqual(accepted(0));
    const other = { kind: "other_dtype", tensor: 0, sequence: 0 };
    await refused(second ?? [], other, inDType(second ?? []));
    await refused(second ?? [], other, inDType(second ?? [], "F16"));
    expect(await accept(second ?? [], inDType(second ?? [], "F32"))).toEqual(accepted(1));
    expect(await accept(third ?? [], inDType(third ?? []))).toEqual(accepted(2));
    expect((await sessions.rows(R)).get(0)).toEqual([{ from: 0, to: 8 }]);
    expect((await sessions.bucket(R, 0)).pieces).toMatchObject([{ dtype: "F32" }]);
  });

  it("in any order, of any rows, accepts what overlaps nothing accepted, and has all of it", async () => {
    const piece = fc.tuple(fc.nat(2), fc.nat(20), fc.integer({ min: 1, max: 6 }));
    const bucket = fc.uniqueArray(piece, { selector: ([tensor]) => tensor, minLength: 1 });
    await fc.assert(
      fc.asyncProperty(fc.array(bucket, { maxLength: 12 }), async (buckets) => {
        await redis.flushall();
        await sessions.open(R, "spool");
        const has = [new Set<number>(), new Set<number>(), new Set<number>()];
        for (const [at, pieces] of buckets.entries()) {
          const rows = pieces.map(([tensor, from, count]): Rows => [tensor, from, from + count]);
          const each = rows.flatMap(([tensor, from, to]) =>
            Array.from({ length: to - from }, (_, row) => [tensor, from + row] as const),
          );
          const overlaps = each.some(([tensor, row]) => has[tensor]?.has(row));
          const { kind } = await accept(rows, { contentKey: String(at) });
          expect(kind).toBe(overlaps ? "overlap" : "accepted");
          if (!overlaps) for (const [tensor, row] of each) has[tensor]?.add(row);
        }
        const rows = await sessions.rows(R);
        for (const [tensor, expected] of has.entries()) {
          const found = (rows.get(tensor) ?? []).flatMap(({ from, to }) =>
            Array.from({ length: to - from }, (_, row) => from + row),
          );
          expect(found).toEqual([...expected].sort((a, b) => a - b));
        }
      }),
      { numRuns: 40 },
    );
  });

  it("loses nothing when many are sent at once: each has a place of its own, and each row is taken once", async () => {
    const apart = Array.from({ length: 20 }, (_, row) => accept([[0, row, row + 1]]));
    const same = Array.from({ length: 10 }, () => accept([[1, 0, 5]]));
    const crossing = Array.from({ length: 10 }, (_, at) => accept([[2, at, at + 5]]));
    const kinds = async (answers: Promise<{ kind: string }>[]) => (await Promise.all(answers)).map(({ kind }) => kind);
    expect(new Set(await kinds(apart))).toEqual(new Set(["accepted"]));
    expect((await kinds(same)).filter((kind) => kind === "accepted")).toHaveLength(1);
    const crossed = (await kinds(crossing)).filter((kind) => kind === "accepted").length;
    const count = await sessions.count(R);
    expect(count).toBe(21 + crossed);
    const numbers = Array.from({ length: count }, async (_, at) => (await sessions.bucket(R, at)).number);
    expect(new Set(await Promise.all(numbers)).size).toBe(count);
  });
});

describe("a bucket is consumed", () => {
  it("when every rank's current incarnation has it and it is kept, whichever is last, and that is told once", async () => {
    await sessions.open(R, "spool");
    for (const [tensor, spooledAfter] of [0, 1, 2].entries()) {
      await accept([[tensor, 0, 1]]);
      const steps = [() => takenBy(tensor, [A], [A, B]), () => takenBy(tensor, [B], [A, B])];
      steps.splice(spooledAfter, 0, async () => {
        await spooled(tensor);
        await sessions.taken(R, tensor, null, [A, B]);
      });
      for (const [at, step] of steps.entries()) {
        expect([tensor, at, await stateOf(tensor)]).toEqual([tensor, at, "pending"]);
        await step();
      }
      expect(await stateOf(tensor)).toBe("consumed");
    }
    await takenBy(0, [A, B, A]);
    expect(await events()).toEqual([0, 1, 2].map((bucket) => ["bucket", { bucket, state: "consumed" }]));
    expect(await sessions.summary(R)).toMatchObject({ accepted: 3, consumed: 3, unspooled: [], wanted: [] });
  });

  it("not by the word of an incarnation that is over", async () => {
    await sessions.open(R, "spool");
    await accept([[0, 0, 1]]);
    await spooled(0);
    await takenBy(0, [A, B], [A, NEW_B]);
    expect(await stateOf(0)).toBe("pending");
    expect(await sessions.takers(R, 0, [A.rank, B.rank, "0/2"])).toEqual(["a.1", "b.1", null]);
    await takenBy(0, [NEW_B], [A, NEW_B]);
    expect(await stateOf(0)).toBe("consumed");
    expect(await sessions.takers(R, 0, [B.rank])).toEqual(["b.2"]);
  });

  it("though nobody keeps it, when the trainer does", async () => {
    await sessions.open(R, "trainer");
    await accept([[0, 0, 1]]);
    expect(await sessions.bucket(R, 0)).toMatchObject({ isReadable: true });
    await takenBy(0, [A, B]);
    expect(await sessions.bucket(R, 0)).toMatchObject({ state: "consumed", spooled: false, isReadable: false });
  });

  it("and can be read after that when it is in the spool, where its file then is", async () => {
    await sessions.open(R, "spool");
    await accept([[0, 0, 1]]);
    expect(await sessions.summary(R)).toMatchObject({ unspooled: [0] });
    await spooled(0);
    await takenBy(0, [A, B]);
    const kept = { state: "consumed", spooled: true, isReadable: true, file: fileAt("/spool") };
    expect(await sessions.bucket(R, 0)).toMatchObject(kept);
  });
});

describe("a bucket is wanted", () => {
  beforeEach(() => sessions.open(R, "trainer"));

  it("when it was consumed, and some incarnation has not taken it: told once, and no longer counted as consumed", async () => {
    await accept([[0, 0, 1]]);
    await accept([[1, 0, 1]], { number: 9 });
    expect(await sessions.want(R, 0)).toBe(false);
    for (const sequence of [0, 1]) await takenBy(sequence, [A, B]);
    expect(await sessions.lost(R, [A, B])).toEqual([]);
    expect(await sessions.lost(R, [A, NEW_B])).toEqual([0, 1]);
    expect([await sessions.want(R, 1), await sessions.want(R, 1)]).toEqual([true, false]);
    expect(await sessions.lost(R, [A, NEW_B])).toEqual([0]);
    expect((await events()).at(-1)).toEqual(["bucket", { bucket: 9, state: "wanted" }]);
    expect(await sessions.summary(R)).toMatchObject({ accepted: 2, consumed: 1, wanted: [1] });
    expect(await sessions.bucket(R, 1)).toMatchObject({ state: "wanted", isReadable: false });
  });

  it("until it is sent again: as its next delivery, though the push is finished and others wait", async () => {
    await accept([[0, 0, 1]]);
    await accept([[1, 0, 1]]);
    await takenBy(0, [A, B]);
    await sessions.want(R, 0);
    await sessions.finish(R, 2);
    await refused([[2, 0, 1]], { kind: "finished" }, {}, 1);
    expect(await accept([[0, 0, 1]], { file: fileAt("/again") }, 1)).toEqual({ kind: "again", sequence: 0 });
    const again = { number: 0, delivery: 1, state: "pending", isReadable: true, file: fileAt("/again") };
    expect(await sessions.bucket(R, 0)).toMatchObject(again);
    expect(await sessions.summary(R)).toMatchObject({ accepted: 2, consumed: 0, wanted: [], log: 3 });
    await takenBy(0, [NEW_B], [A, NEW_B]);
    expect(await stateOf(0)).toBe("consumed");
  });

  it("never when its bytes are kept", async () => {
    await redis.flushall();
    await sessions.open(R, "spool");
    await accept([[0, 0, 1]], { spooled: true });
    await takenBy(0, [A, B]);
    expect([await sessions.lost(R, [A, NEW_B]), await sessions.want(R, 0)]).toEqual([[], false]);
  });
});

describe("a body whose trainer keeps it", () => {
  it("lies in the spool until it is consumed, and what is given up is never a later delivery", async () => {
    await sessions.open(R, "trainer");
    await accept([[0, 0, 1]], { spooled: true, file: fileAt("/spool/a") });
    expect(await sessions.summary(R)).toMatchObject({ passing: [0], unspooled: [] });
    await takenBy(0, [A, B]);
    const first = await sessions.bucket(R, 0);
    expect(first).toMatchObject({ state: "consumed", isReadable: false, file: fileAt("/spool/a") });
    await sessions.want(R, 0);
    await accept([[0, 0, 1]], { spooled: true, file: fileAt("/spool/b") });
    await sessions.passed(R, first);
    expect(await sessions.summary(R)).toMatchObject({ passing: [0] });
    await sessions.passed(R, await sessions.bucket(R, 0));
    expect(await sessions.summary(R)).toMatchObject({ passing: [] });
  });
});

describe("a copy in the spool", () => {
  beforeEach(() => sessions.open(R, "spool"));

  it("is the first that was told of, and that may be told again", async () => {
    await accept([[0, 0, 1]]);
    const told = (path: string) => sessions.spooled(R, { sequence: 0, delivery: 0 }, fileAt(path));
    expect([await told("/spool/a"), await told("/spool/b"), await told("/spool/a")]).toEqual([true, false, true]);
    expect(await sessions.bucket(R, 0)).toMatchObject({ spooled: true, file: fileAt("/spool/a") });
  });

  it("is not of another delivery", async () => {
    await accept([[0, 0, 1]]);
    expect(await spooled(0, 1)).toBe(false);
    expect(await sessions.bucket(R, 0)).toMatchObject({ spooled: false, file: fileAt("/trainer") });
  });
});

describe("jobs", () => {
  it("are for the last delivery of each bucket that can be read", async () => {
    await sessions.open(R, "trainer");
    for (const tensor of [0, 1, 2]) await accept([[tensor, 0, 1]]);
    await takenBy(0, [A, B]);
    await takenBy(1, [A, B]);
    await sessions.want(R, 1);
    await accept([[1, 0, 1]]);
    expect(await sessions.deliveries(R, 0, 4)).toEqual([
      { sequence: 1, delivery: 1 },
      { sequence: 2, delivery: 0 },
    ]);
    expect(await sessions.deliveries(R, 3, 4)).toEqual([{ sequence: 1, delivery: 1 }]);
    expect(await sessions.deliveries(R, 4, 4)).toEqual([]);
  });

  it("begin anew with each incarnation", async () => {
    await sessions.open(R, "spool");
    expect(await sessions.sentTo(R, B)).toBe(0);
    await sessions.noteSent(R, B, 5);
    expect([await sessions.sentTo(R, B), await sessions.sentTo(R, NEW_B), await sessions.sentTo(R, A)]).toEqual([
      5, 0, 0,
    ]);
  });
});

describe("a session", () => {
  it("that is opened twice is as it was", async () => {
    await sessions.open(R, "spool");
    await accept([[0, 0, 1]]);
    const before = await everything();
    await sessions.open(R, "trainer");
    expect(await everything()).toEqual(before);
  });

  it("is touched by what comes of the trainer and of ranks, by Redis's clock", async () => {
    await sessions.open(R, "spool");
    await accept([[0, 0, 1]]);
    const touches: [string, () => Promise<unknown>][] = [
      ["a bucket", () => accept([[1, 0, 1]])],
      ["the same bucket", () => accept([[1, 0, 1]])],
      ["a rank", () => takenBy(0, [A], [A, B])],
      ["a sign of life", () => sessions.touch(R)],
    ];
    for (const [what, touch] of touches) {
      await redis.hset(KEYS.session(R), "touched", "1");
      await touch();
      const { touchedAt = 0, now = 0 } = (await sessions.summary(R)) ?? {};
      expect([what, now - touchedAt < 5_000, touchedAt <= now]).toEqual([what, true, true]);
    }
  });

  it("that is not there, or no longer, has no buckets, and nothing makes it", async () => {
    await sessions.touch(R);
    expect([await sessions.count(R), await sessions.summary(R), await sessions.rows(R)]).toEqual([0, null, new Map()]);
    await expectLayercastRejection(sessions.bucket(R, 0), "source_gone", /push its weights again/);
    await expectLayercastRejection(sessions.taken(R, 0, A, [A]), "source_gone", /push its weights again/);
    expect(await redis.keys("*")).toEqual([]);
  });
});
