// The spool keeps what it is given whole or not at all, apart for each reload, and gives up all of a reload's at once.

import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { openSpool, type Spool } from "../../../orchestrator/reloads/push/spool.js";
import { expectLayercastRejection } from "../../checkpoint/expect-error.js";
import { bucketBytes } from "./open-push.js";

const BYTES = bucketBytes(["model.norm.weight"]);

let directory: string;
let spool: Spool;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "layercast-spool-"));
  spool = openSpool(join(directory, "spool"));
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

function trainerFile(): string {
  const path = join(directory, "bucket.safetensors");
  writeFileSync(path, BYTES);
  return path;
}

async function* chunks(...sizes: number[]): AsyncGenerator<Uint8Array> {
  let at = 0;
  for (const size of sizes) {
    yield BYTES.subarray(at, at + size);
    at += size;
  }
}

const filesOf = (reload: string) => {
  const own = join(spool.directory, reload);
  return existsSync(own) ? readdirSync(own) : [];
};

describe("a file that is kept", () => {
  it("is a copy: what becomes of the trainer's does not matter", async () => {
    const from = trainerFile();
    const kept = await spool.keep("r1", from, false);
    expect(statSync(kept.path).ino).not.toBe(statSync(from).ino);
    writeFileSync(from, "the trainer's again");
    expect(readFileSync(kept.path)).toEqual(Buffer.from(BYTES));
    expect(kept).toMatchObject({ sizeBytes: BYTES.byteLength, inode: String(statSync(kept.path).ino) });
    expect(kept.path.startsWith(join(spool.directory, "r1"))).toBe(true);
  });

  it("is a link when nobody writes to it again, which outlives its name", async () => {
    const from = trainerFile();
    const { ino } = statSync(from);
    const kept = await spool.keep("r1", from, true);
    rmSync(from);
    expect(statSync(kept.path).ino).toBe(ino);
    expect(readFileSync(kept.path)).toEqual(Buffer.from(BYTES));
  });

  it("is a copy where a link cannot be made, as across file systems", async () => {
    const kept = await spool.keep("r1", "/proc/self/status", true).catch((error: unknown) => error);
    expect(kept).toMatchObject({ code: "checkpoint_invalid" }); // copied, and then read as what it is not
    const memory = "/dev/shm/layercast-spool-test.safetensors";
    if (!existsSync("/dev/shm") || statSync("/dev/shm").dev === statSync(directory).dev) return;
    writeFileSync(memory, BYTES);
    try {
      const copied = await spool.keep("r1", memory, true);
      expect(readFileSync(copied.path)).toEqual(Buffer.from(BYTES));
    } finally {
      rmSync(memory);
    }
  });

  it("twice is two files, so that none is written over", async () => {
    const from = trainerFile();
    const [one, other] = await Promise.all([spool.keep("r1", from, false), spool.keep("r1", from, false)]);
    expect(one.path).not.toBe(other.path);
    expect(filesOf("r1")).toHaveLength(2);
  });

  it("that cannot be read leaves nothing behind", async () => {
    const gone = spool.keep("r1", join(directory, "gone"), false);
    await expectLayercastRejection(gone, "io_error", /a bucket could not be kept in .*ENOENT/);
    expect(filesOf("r1")).toEqual([]);
  });
});

describe("a body that is received", () => {
  it("is written as it comes", async () => {
    const path = await spool.receive("r1", chunks(7, 1, BYTES.byteLength - 8), BYTES.byteLength);
    expect(readFileSync(path)).toEqual(Buffer.from(BYTES));
    await spool.giveUp(path);
    await spool.giveUp(path);
    expect(filesOf("r1")).toEqual([]);
  });

  it.each([
    ["short", [10], BYTES.byteLength],
    ["long", [BYTES.byteLength], 10],
  ])("and is too %s is refused with both lengths, and nothing is left of it", async (_how, sizes, sizeBytes) => {
    const received = spool.receive("r1", chunks(...sizes), sizeBytes);
    const error = await expectLayercastRejection(
      received,
      "checkpoint_invalid",
      /Content-Length says \d+; send it again/,
    );
    expect(error.details).toEqual({ expected: sizeBytes, found: sizes[0] });
    expect(filesOf("r1")).toEqual([]);
  });

  it("and breaks off leaves nothing", async () => {
    async function* broken() {
      yield BYTES.subarray(0, 9);
      throw new Error("the connection is gone");
    }
    await expectLayercastRejection(spool.receive("r1", broken(), 100), "io_error", /the connection is gone/);
    expect(filesOf("r1")).toEqual([]);
  });
});

describe("bodies that break off at once", () => {
  it("leave nothing, not even a file that was still being opened", async () => {
    async function* broken(): AsyncGenerator<Uint8Array> {
      yield BYTES;
      throw new Error("the connection is gone");
    }
    const fails = () => expectLayercastRejection(spool.receive("r1", broken(), 100), "io_error", /is gone/);
    // Two at once, many times: which of opening and removing comes first is the system's choice.
    for (let round = 0; round < 1000; round += 1) await Promise.all([fails(), fails()]);
    await spool.giveUp(join(directory, "none")); // behind what is still under way
    expect(filesOf("r1")).toEqual([]);
  });
});

describe("no space", () => {
  const full = (code: string) => Object.assign(new Error(`${code}: no space left on device`), { code });

  it.each(["ENOSPC", "EDQUOT"])(
    "(%s) is said with what can be done about it, and leaves nothing behind",
    async (code) => {
      async function* body() {
        yield BYTES;
        throw full(code);
      }
      const received = spool.receive("r1", body(), BYTES.byteLength);
      const error = await expectLayercastRejection(received, "out_of_memory", /no space for a bucket in .*--spool-dir/);
      expect(error.details).toEqual({ directory: spool.directory, errno: code });
      expect(filesOf("r1")).toEqual([]);
    },
  );
});

describe("a directory that is none", () => {
  it("is named, whatever was to be kept there", async () => {
    writeFileSync(join(directory, "spool"), "a file");
    const sentence = /a bucket could not be kept in .*spool: Error: \w+: /;
    await expectLayercastRejection(spool.keep("r1", trainerFile(), false), "io_error", sentence);
    await expectLayercastRejection(spool.receive("r1", chunks(1), 1), "io_error", sentence);
  });
});

describe("what a reload has kept", () => {
  it("goes all at once, and another's stays", async () => {
    expect(await spool.reloads()).toEqual([]);
    for (const reload of ["r1", "r1", "r2"]) await spool.keep(reload, trainerFile(), false);
    expect((await spool.reloads()).sort()).toEqual(["r1", "r2"]);
    await spool.remove("r1");
    await spool.remove("r1");
    expect(await spool.reloads()).toEqual(["r2"]);
    expect(filesOf("r2")).toHaveLength(1);
  });
});
