// Where the bytes of buckets are kept, and for how long: bodies that are kept only until they are consumed, and files that cannot be
// kept as they were accepted.

import { readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { bucketBytes, NAMES, type TestPush, usePushes } from "./open-push.js";

const world = usePushes("keep-buckets");
const [FIRST = "", SECOND = ""] = NAMES;

const kept = ({ id }: TestPush) => readdirSync(join(world.spoolDirectory, id));

describe("a body, with retain: trainer,", () => {
  it("lies in the spool until it is consumed, and not longer", async () => {
    const push = await world.open({ retain: "trainer" });
    const sequence = await push.put(0, bucketBytes([FIRST]));
    await push.take(sequence, 0);
    await push.tend();
    expect([await push.state(sequence), kept(push).length]).toEqual(["pending", 1]);
    await push.take(sequence, 1);
    expect(await push.state(sequence)).toBe("consumed");
    await push.tend();
    expect(kept(push)).toEqual([]);
    await push.tend();
  });

  it("is wanted when a rank comes anew, and given up again once it was sent again and taken", async () => {
    const push = await world.open({ retain: "trainer" });
    const sequence = await push.put(0, bucketBytes([FIRST]));
    await push.takeByAll(sequence);
    await push.restart(1);
    await push.tend();
    expect([await push.state(sequence), kept(push)]).toEqual(["wanted", []]);
    expect(await push.put(0, bucketBytes([FIRST]))).toBe(sequence);
    await push.tend();
    expect([await push.state(sequence), kept(push).length]).toEqual(["pending", 1]);
    await push.takeByAll(sequence);
    await push.tend();
    expect([await push.state(sequence), kept(push)]).toEqual(["consumed", []]);
  });

  it("with retain: spool stays after it is consumed", async () => {
    const push = await world.open();
    const sequence = await push.put(0, bucketBytes([FIRST]));
    await push.takeByAll(sequence);
    await push.tend();
    expect([await push.state(sequence), kept(push).length]).toEqual(["consumed", 1]);
  });
});

describe("a bucket whose file is not as it was accepted", () => {
  it.each([
    ["written over", (path: string) => writeFileSync(path, bucketBytes([SECOND])), "source_changed"],
    ["removed", (path: string) => rmSync(path), "source_not_found"],
  ])(
    "because it was %s before it was kept fails the push by name, and nothing of it is kept",
    async (_, harm, code) => {
      const push = await world.open();
      const path = push.write(bucketBytes([FIRST]));
      const { keep } = push.deps.spool;
      push.deps.spool.keep = (reload, from, immutable) => {
        harm(path);
        return keep(reload, from, immutable);
      };
      await push.post(path);
      await push.spooled();
      expect(await push.record()).toMatchObject({ state: "failed", error: { code, retryable: false } });
      expect(kept(push)).toEqual([]);
    },
  );

  it("may be removed once there is a link to it, when nobody writes to it again", async () => {
    const push = await world.open();
    const path = push.write(bucketBytes([FIRST]));
    const { keep } = push.deps.spool;
    push.deps.spool.keep = async (reload, from, immutable) => {
      const file = await keep(reload, from, immutable);
      rmSync(path);
      return file;
    };
    const sequence = await push.post(path, true);
    await push.spooled();
    await push.takeByAll(sequence);
    expect([(await push.record()).state, await push.state(sequence)]).toEqual(["loading", "consumed"]);
  });

  it("that cannot be kept for now is kept by a later look", async () => {
    const push = await world.open();
    const { keep } = push.deps.spool;
    push.deps.spool.keep = () => Promise.reject(new Error("not now"));
    const sequence = await push.send(FIRST);
    await push.spooled();
    await push.takeByAll(sequence);
    expect([(await push.record()).state, await push.state(sequence)]).toEqual(["loading", "pending"]);
    push.deps.spool.keep = keep;
    await push.tend();
    await push.spooled();
    expect(await push.state(sequence)).toBe("consumed");
  });
});

describe("a rank that has come anew", () => {
  it("wants, of buckets that nobody keeps those that it has not taken, and each once", async () => {
    const rows = 40;
    const push = await world.open({ retain: "trainer", max_pending_buckets: 100 });
    const sequences: number[] = [];
    for (let row = 0; row < rows; row++)
      sequences.push(await push.send({ name: "lm_head.weight", from: row, to: row + 1 }));
    for (const sequence of sequences) await push.takeByAll(sequence);
    await push.restart(0);
    for (const sequence of sequences.slice(0, rows / 2)) await push.take(sequence, 0);
    await push.tend();
    await push.tend();
    expect((await push.record()).push?.wanted).toEqual(sequences.slice(rows / 2));
    expect(await push.events("bucket")).toHaveLength(rows + rows / 2);
  });
});
