// `layercast export` brings the file whole or not at all, whatever breaks on the way.

import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { exportedBytes, exportPatiently, fetchExport, requireWritable } from "../../orchestrator/cli/export.js";
import type { Client } from "../../orchestrator/cli/http-client.js";
import { writeNewFile } from "../../orchestrator/cli/new-file.js";
import { type ErrorCode, LayercastError } from "../../orchestrator/contract/errors.js";
import type { ExportView } from "../../orchestrator/contract/reload.js";
import { runCaptured } from "./captured.js";

const ANSWER: ExportView = {
  ...{ export_id: "0-1-x", kept_s: 3600, host: "another-host", path: "/elsewhere/x", bytes: 10 },
  ...{ weight_version: "1", arena_generation: 2 },
};

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "layercast-export-"));
});
afterEach(() => rmSync(directory, { recursive: true }));

/** Sends so many bytes of the ten at a time, then breaks off in this way. */
function clientOf(each: number, breaks: () => LayercastError | null): Client & { removed: string[] } {
  const removed: string[] = [];
  return {
    removed,
    async *readExport(_fleet: string, _id: string, from: number) {
      yield Buffer.from("0123456789").subarray(from, from + each);
      const error = breaks();
      if (error !== null) throw error;
    },
    removeExport: async (_fleet: string, id: string) => void removed.push(id),
  } as unknown as Client & { removed: string[] };
}

describe("an export on another host", () => {
  it("is read to its end over connections that break, and then removed there", async () => {
    const client = clientOf(6, () => new LayercastError("io_error", "It broke."));
    const out = join(directory, "out");
    writeFileSync(out, "what was there before");
    expect(await fetchExport(client, "f", ANSWER, out)).toBe(out);
    expect(readFileSync(out, "utf8")).toBe("0123456789");
    expect(readdirSync(directory)).toEqual(["out"]);
    expect(client.removed).toEqual(["0-1-x"]);
  });

  it("that cannot be had leaves nothing behind, nor changes what was there", async () => {
    const client = clientOf(6, () => new LayercastError("not_found", "It is gone."));
    const out = join(directory, "out");
    writeFileSync(out, "before");
    await expect(fetchExport(client, "f", ANSWER, out)).rejects.toMatchObject({ code: "not_found" });
    expect([readdirSync(directory), readFileSync(out, "utf8")]).toEqual([["out"], "before"]);
  });

  it("is given up when nothing goes on", async () => {
    const client = clientOf(0, () => new LayercastError("io_error", "It broke."));
    const read = async () => {
      for await (const _ of exportedBytes(client, "f", ANSWER, 0));
    };
    await expect(read()).rejects.toMatchObject({ code: "io_error" });
  });
});

describe("the place to export to", () => {
  it.each([
    ["in a directory that is not there", "nonexist/x", /nonexist cannot be looked at \(ENOENT\)/],
    ["under a file", "file/x", /file is no directory/],
    ["that is a directory", "folder", /that is a directory/],
  ])("%s is refused before the rank writes anything", async (_how, name, sentence) => {
    writeFileSync(join(directory, "file"), "");
    mkdirSync(join(directory, "folder"));
    const asked = vi.spyOn(globalThis, "fetch").mockRejectedValue(new Error("nothing may be asked"));
    const { code, err } = await runCaptured(["export", "--rank", "0", "--out", join(directory, name)], { env: {} });
    expect([code, asked.mock.calls]).toEqual([2, []]);
    expect(err).toMatch(sentence);
    vi.restoreAllMocks();
  });

  it("may be there already, as a file", async () => {
    writeFileSync(join(directory, "out"), "before");
    await expect(requireWritable(join(directory, "out"))).resolves.toBeUndefined();
  });
});

describe("asking for an export", () => {
  const failing = (...codes: ErrorCode[]) => {
    const told: string[] = [];
    const exportRank = async () => {
      const code = codes.shift();
      if (code === undefined) return ANSWER;
      throw new LayercastError(code, "Rank 0/1 was lost.", { retry_after_s: 0.001 });
    };
    return {
      told,
      ask: (ms?: number) => exportPatiently({ exportRank }, "f", 0, 1, (words) => void told.push(words), ms),
    };
  };

  it("goes on while the rank may come back, and says so once", async () => {
    const { told, ask } = failing("rank_lost", "redis_unavailable", "fleet_incomplete");
    expect(await ask()).toBe(ANSWER);
    expect(told).toEqual(["rank_lost: Rank 0/1 was lost. Trying again for 60 s."]);
  });

  it.each([
    ["not_found", 60_000],
    ["io_error", 60_000],
    ["rank_lost", -1],
  ] as const)("ends with %s where trying again is of no use, or the time is over", async (code, giveUpAfterMs) => {
    await expect(failing(code).ask(giveUpAfterMs)).rejects.toMatchObject({ code });
  });
});

it("an export on this host is moved", async () => {
  const path = join(directory, "made");
  writeFileSync(path, "0123456789");
  await fetchExport(
    clientOf(0, () => null),
    "f",
    { ...ANSWER, host: hostname(), path },
    join(directory, "out"),
  );
  expect(readdirSync(directory)).toEqual(["out"]);
});

it("a new file lies nowhere until it is whole, so that a kill leaves nothing", async () => {
  const out = join(directory, "out");
  const seen: string[][] = [];
  async function* chunks() {
    yield Buffer.from("half");
    seen.push(readdirSync(directory));
    yield Buffer.from(" and half");
  }
  await writeNewFile(out, chunks());
  expect([seen, readFileSync(out, "utf8")]).toEqual([[[]], "half and half"]);
});
