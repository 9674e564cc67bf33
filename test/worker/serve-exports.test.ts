// A rank's exports on its disk: read in parts by whoever asks, and gone in time.

import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import {
  decodePartAnswer,
  EXPORT_KEPT_MS,
  encodePartAnswer,
  exportId,
  PART_BYTES,
  type PartAnswer,
  type PartRequest,
  parsePartRequest,
} from "../../orchestrator/contract/exports.js";
import { type ExportReader, openExportReader } from "../../orchestrator/reloads/read-export.js";
import { answerPart, sweepExports } from "../../worker/serve-exports.js";

const ID = exportId("0/1", "0123456789abcdef0123456789abcdef");

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "layercast-exports-"));
});
afterEach(() => rmSync(directory, { recursive: true }));

function made(name: string, agedMs = 0): string {
  const path = join(directory, name);
  writeFileSync(path, "x");
  const at = new Date(Date.now() - agedMs);
  utimesSync(path, at, at);
  return path;
}

describe("the sweep", () => {
  it("removes what has had its time, and leaves what has not", async () => {
    made(`${ID}.safetensors`, EXPORT_KEPT_MS + 60_000);
    made("young.safetensors", EXPORT_KEPT_MS - 60_000);
    mkdirSync(join(directory, "a-directory"));
    await sweepExports(directory, Date.now(), false);
    expect(readdirSync(directory).sort()).toEqual(["a-directory", "young.safetensors"]);
  });

  it("removes what a worker that was killed left unfinished when the next one starts, and only then", async () => {
    made(`${ID}.safetensors.new-17-0`);
    await sweepExports(directory, Date.now(), false);
    expect(readdirSync(directory)).toHaveLength(1);
    await sweepExports(directory, Date.now(), true);
    expect(readdirSync(directory)).toEqual([]);
  });
});

describe("a part", () => {
  const request = (fields: Partial<PartRequest> = {}): PartRequest => {
    return { orchestrator: "o", number: 1, id: ID, kind: "read", offset: 0, bytes: PART_BYTES, ...fields };
  };

  it("is what the file holds there, and notes that the export is of use", async () => {
    const path = made(`${ID}.safetensors`, EXPORT_KEPT_MS - 1_000);
    writeFileSync(path, "0123456789");
    utimesSync(path, new Date(0), new Date(0));
    const answer = await answerPart(directory, request({ offset: 4, bytes: 3 }));
    expect([answer.result, answer.sizeBytes, answer.content.toString()]).toEqual(["ok", 10, "456"]);
    expect(statSync(path).mtimeMs).toBeGreaterThan(Date.now() - 60_000);
    expect((await answerPart(directory, request({ offset: 99 }))).content).toHaveLength(0);
  });

  it("of an export that is gone says so, and of one that cannot be read says why", async () => {
    expect((await answerPart(directory, request())).result).toBe("gone");
    mkdirSync(join(directory, `${ID}.safetensors`));
    expect(await answerPart(directory, request())).toMatchObject({
      result: "failed",
      message: expect.stringMatching(/EISDIR/),
    });
  });

  it("is asked for by an id alone, so nothing outside of the exports is reached", () => {
    for (const id of ["../control", "0-1-0123456789abcdef0123456789abcdef/../../control", "0-1", ""]) {
      expect(parsePartRequest(JSON.stringify(request({ id })))).toBeNull();
    }
    for (const wrong of [
      { bytes: PART_BYTES + 1 },
      { offset: -1 },
      { kind: "write" as "read" },
      { number: Number.NaN },
    ]) {
      expect(parsePartRequest(JSON.stringify(request(wrong)))).toBeNull();
    }
    for (const text of ["", "null", "{", "[]", "7"]) expect(parsePartRequest(text)).toBeNull();
  });

  it("crosses the channel as it is; anything else on it is ignored", () => {
    const content = Buffer.from([0, 10, 255, 10]);
    const answer: PartAnswer = { number: 3, result: "ok", sizeBytes: 4, message: "", content };
    expect(decodePartAnswer(encodePartAnswer(answer))).toEqual(answer);
    for (const text of ["", "\n", "null\n", "{}\n", '{"number":-1}\n'])
      expect(decodePartAnswer(Buffer.from(text))).toBeNull();
  });
});

/** A reader whose rank answers from the directory; `lose` says which requests nobody hears or whose answer is lost. */
function readerOf(lose: (request: PartRequest, at: number) => "unheard" | "lost" | null = () => null) {
  const asked: PartRequest[] = [];
  let most = 0;
  let now = 0;
  let answer: (channel: Buffer, message: Buffer) => void = () => {};
  const redis = {
    async publish(_channel: string, text: string) {
      const request = parsePartRequest(text);
      if (request === null) throw new Error(text);
      const fate = lose(request, asked.push(request) - 1);
      if (fate === "unheard") return 0;
      most = Math.max(most, ++now);
      const part = await answerPart(directory, request);
      setImmediate(() => {
        now -= 1;
        if (fate === null) answer(Buffer.from(""), encodePartAnswer(part));
      });
      return 1;
    },
  };
  const connection = {
    on: (_name: string, listener: (channel: Buffer, message: Buffer) => void) => {
      answer = listener;
    },
    subscribe: async () => 1,
  };
  const options = { redis, connect: () => connection, name: "o", answerWithinMs: 20, giveUpAfterMs: 400 };
  const reader = openExportReader(options as unknown as Parameters<typeof openExportReader>[0]);
  return { reader, asked, most: () => most };
}

async function contentOf(reader: ExportReader, from: number, to: number, signal = new AbortController().signal) {
  const chunks: Buffer[] = [];
  for await (const chunk of reader.read("f", ID, from, to, signal)) chunks.push(chunk);
  return Buffer.concat(chunks);
}

describe("reading an export from another host", () => {
  const content = Buffer.alloc(7 * PART_BYTES + 5, (Math.random() * 1e9).toString());
  beforeEach(() => writeFileSync(join(directory, `${ID}.safetensors`), content));

  it("gives its bytes in order, whole or from any one on, with few parts under way", async () => {
    const { reader, most } = readerOf();
    expect(await reader.sizeBytes("f", ID)).toBe(content.length);
    expect((await contentOf(reader, 0, content.length)).equals(content)).toBe(true);
    const from = PART_BYTES + 7;
    expect((await contentOf(reader, from, content.length)).equals(content.subarray(from))).toBe(true);
    expect(most()).toBeLessThanOrEqual(4);
  });

  it("asks for no more than a reader takes", async () => {
    const { reader, asked } = readerOf();
    const chunks = reader.read("f", ID, 0, content.length, new AbortController().signal);
    await chunks.next();
    await new Promise((resolve) => setTimeout(resolve, 30));
    expect(asked).toHaveLength(4);
    await chunks.return(undefined);
  });

  it("asks again for a part that nobody heard of, or whose answer was lost", async () => {
    const { reader } = readerOf((_, at) => (at === 2 ? "lost" : at === 3 ? "unheard" : null));
    expect((await contentOf(reader, 0, content.length)).equals(content)).toBe(true);
  });

  it("gives up a rank that does not answer, in time", async () => {
    const { reader } = readerOf(() => "unheard");
    await expect(reader.sizeBytes("f", ID)).rejects.toMatchObject({ code: "rank_lost" });
  });

  it("ends with its client, and gives its place back", async () => {
    const { reader } = readerOf(() => "lost");
    for (let time = 0; time < 6; time++) {
      const gone = new AbortController();
      const reading = contentOf(reader, 0, content.length, gone.signal);
      gone.abort();
      await expect(reading).rejects.toThrow();
    }
  });

  it("refuses more readers than it has places for", async () => {
    const { reader } = readerOf();
    const readers = Array.from({ length: 5 }, () =>
      reader.read("f", ID, 0, content.length, new AbortController().signal),
    );
    const first = await Promise.allSettled(readers.map((chunks) => chunks.next()));
    expect(first.filter(({ status }) => status === "rejected")).toHaveLength(1);
    expect(first.at(-1)).toMatchObject({ reason: { code: "backpressure" } });
    await Promise.all(readers.map((chunks) => chunks.return(undefined)));
  });

  it("says that it is gone, or what it is not", async () => {
    const { reader } = readerOf();
    await reader.remove("f", ID);
    expect(existsSync(join(directory, `${ID}.safetensors`))).toBe(false);
    await expect(reader.remove("f", ID)).resolves.toBeUndefined(); // the first answer may have been lost
    for (const id of [ID, "no-id"])
      await expect(reader.sizeBytes("f", id)).rejects.toMatchObject({ code: "not_found" });
  });
});
