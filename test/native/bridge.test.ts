// Every function of the bridge through the built addon: what it does, and how it refuses. The numbers themselves are the
// business of the C++ tests beside this file.

import { existsSync, mkdtempSync, readFileSync, rmSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import {
  AGREEMENT_FIELDS,
  type Arena,
  COPY_FIELDS,
  DERIVED_FIELDS,
  type LayerProgram,
  loadNative,
  NATIVE_ABI,
  NATIVE_ERRORS,
  OP_FIELDS,
  SCALE_FIELDS,
  SLICE_FIELDS,
} from "../../native/native.js";
import { DTYPES } from "../../orchestrator/contract/dtype.js";
import { SCALE_BLOCK, SCHEMES } from "../../orchestrator/contract/recipe.js";
import { CODES, channelProgram, SPANS, VALUES } from "./channel-program.js";
import { refusal } from "./refusal.js";

const core = loadNative();
const SOURCES = join(import.meta.dirname, "../../native/src");
const HEADER = new Uint8Array(4096).fill(0x20);
const DATA_BYTES = 1024;

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "layercast-bridge-"));
});
afterEach(() => rmSync(directory, { recursive: true }));

const sourcePath = (): string => join(directory, "file");

function snake(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

function structFields(name: string): string[] {
  const header = readFileSync(join(SOURCES, "layer_program.h"), "utf8");
  const body = new RegExp(`struct ${name} \\{([^}]*)\\}`).exec(header)?.[1] ?? "";
  return [...body.matchAll(/^ {2}[\w:]+ (\w+);/gm)].map((match) => match[1] ?? "");
}

const device = core.openDevice("cpu");

function createArena(dataBytes = DATA_BYTES, path = join(directory, "live")): Arena {
  return core.openArena({ device, path, mode: "create", headerBytes: HEADER, dataBytes, ipcHandle: "" });
}

function createStagedArena(): Arena {
  const arena = createArena();
  core.openStaging(arena, "device", true);
  return arena;
}

function liveBytes(): Buffer {
  return readFileSync(join(directory, "live")).subarray(HEADER.length);
}

describe("the two sides of the bridge", () => {
  it("have the same ABI, and the same fields in the same order", () => {
    expect(core.abi).toBe(NATIVE_ABI);
    expect(structFields("Op")).toEqual(OP_FIELDS.map(snake));
    expect(structFields("Slice")).toEqual(SLICE_FIELDS.map(snake));
    expect(structFields("ScaleMatrix")).toEqual(SCALE_FIELDS.map(snake));
    expect(structFields("Agreement")).toEqual(AGREEMENT_FIELDS.map(snake));
    expect(structFields("Derived")).toEqual(DERIVED_FIELDS.map(snake));
    expect(structFields("Copy")).toEqual(COPY_FIELDS.map(snake));
  });

  it("have the same error codes", () => {
    const header = readFileSync(join(SOURCES, "error.h"), "utf8");
    expect([...header.matchAll(/"(NATIVE_\w+)"/g)].map((match) => match[1])).toEqual([...NATIVE_ERRORS]);
  });

  it("have the same codes of dtypes", () => {
    const dtypes = readFileSync(join(SOURCES, "dtype.h"), "utf8");
    for (const [name, { code }] of Object.entries(DTYPES)) expect(dtypes).toContain(`${name.toLowerCase()} = ${code}`);
  });

  it("have the same schemes: their codes, and which rows must be written together", () => {
    const header = readFileSync(join(SOURCES, "scheme.h"), "utf8");
    const rows = [...header.matchAll(/SchemeRow\{Scheme::\w+, "([\w-]+)", Granularity::(\w+)\}/g)];
    const rowsTogether: Record<string, unknown> = { none: 1, matrix: "all", row: 1, block: SCALE_BLOCK };
    expect(rows.map(([, name, granularity = ""], code) => [name, code, rowsTogether[granularity]])).toEqual(
      Object.entries(SCHEMES).map(([name, scheme]) => [name, scheme.code, scheme.rowsTogether]),
    );
  });
});

describe("runLayer, exchange and digest", () => {
  it("write to staging, and exchange makes it live, and again undoes it", async () => {
    const arena = createStagedArena();
    const program = channelProgram(sourcePath(), VALUES);
    const report = await core.runLayer(arena, "staging", program, core.createCancel());
    expect(report).toMatchObject({ bytesRead: 32, bytesWritten: 16, digest: expect.stringMatching(/^[0-9a-f]{16}$/) });
    for (const key of ["readMs", "placeMs", "quantizeMs", "writeMs"] as const) expect(report[key]).toBeGreaterThan(0);
    expect(await core.digest(arena, "staging", SPANS, core.createCancel())).toBe(report.digest);
    expect([...liveBytes()].every((byte) => byte === 0)).toBe(true);

    expect(await core.exchange(arena, SPANS, core.createCancel())).toMatchObject({ bytes: 16 });
    expect([...liveBytes().subarray(0, 8)]).toEqual(CODES);
    expect([liveBytes().readFloatLE(256), liveBytes().readFloatLE(260)]).toEqual([1, 2]);
    expect(liveBytes()[8]).toBe(0);
    expect(await core.digest(arena, "live", SPANS, core.createCancel())).toBe(report.digest);

    await core.exchange(arena, SPANS, core.createCancel());
    expect([...liveBytes()].every((byte) => byte === 0)).toBe(true);
    core.closeArena(arena);
  });

  it("give the digest that its definition gives", async () => {
    const arena = createStagedArena();
    await core.runLayer(arena, "live", channelProgram(sourcePath(), VALUES), core.createCancel());
    const mask = (1n << 64n) - 1n;
    const mix = (x: bigint): bigint => {
      const a = (x + 0x9e3779b97f4a7c15n) & mask;
      const b = ((a ^ (a >> 30n)) * 0xbf58476d1ce4e5b9n) & mask;
      const c = ((b ^ (b >> 27n)) * 0x94d049bb133111ebn) & mask;
      return c ^ (c >> 31n);
    };
    let sum = 0n;
    const bytes = liveBytes();
    for (const { offset } of SPANS) {
      let words = 0n;
      for (let j = 0; j < 2; j++) words += (mix(BigInt(j + 1)) | 1n) * BigInt(bytes.readUInt32LE(offset + 4 * j));
      sum += (mix(~BigInt(offset / 256) & mask) | 1n) * words;
    }
    const expected = (sum & mask).toString(16).padStart(16, "0");
    expect(await core.digest(arena, "live", SPANS, core.createCancel())).toBe(expected);
  });

  it("refuse a value that is not finite, naming slice, row and column, unless it is allowed", async () => {
    const arena = createStagedArena();
    const program = channelProgram(sourcePath(), [1, 1, 1, 1, 1, 1, Number.NaN, 1]);
    const cancel = core.createCancel();
    expect(await refusal(() => core.runLayer(arena, "staging", program, cancel))).toEqual({
      code: "NATIVE_NON_FINITE",
      details: { slice: 0, row: 1, col: 2 },
    });
    await core.runLayer(arena, "staging", { ...program, allowNonFinite: true }, cancel);
  });

  it("refuse a value that must be positive and is not", async () => {
    const arena = createStagedArena();
    const program = channelProgram(sourcePath(), [1, 1, 1, 1, 1, 0, 1, 1]);
    program.ops[OP_FIELDS.indexOf("mustBePositive")] = 1;
    const error = await refusal(() => core.runLayer(arena, "staging", program, core.createCancel()));
    expect(error).toEqual({ code: "NATIVE_NOT_POSITIVE", details: { slice: 0, row: 1, col: 1 } });
  });

  it("refuse slices that must agree and do not, naming both, before a byte is written", async () => {
    const arena = createStagedArena();
    const good = channelProgram(sourcePath(), VALUES);
    const element = (index: number) => [0, 4 * index, 4, 1, 1, DTYPES.F32.code, 0, 4, -1]; // of the same file
    const slices = new Float64Array([...good.slices, ...element(3), ...element(7), ...element(0)]);
    const run = (...pair: number[]) =>
      core.runLayer(arena, "live", { ...good, slices, agreements: new Float64Array(pair) }, core.createCancel());
    expect(await refusal(() => run(1, 2, 2, 3))).toEqual({
      code: "NATIVE_SCALES_DIFFER",
      details: { slice: 2, with: 3 },
    });
    expect([...liveBytes()].every((byte) => byte === 0)).toBe(true);
    await run(1, 2);
    expect([...liveBytes().subarray(0, 8)]).toEqual(CODES);
  });

  it("refuse a source that changed or is missing, naming the file", async () => {
    const arena = createStagedArena();
    const program = channelProgram(sourcePath(), VALUES);
    truncateSync(program.files[0].path, 20);
    const run = () => core.runLayer(arena, "staging", program, core.createCancel());
    expect(await refusal(run)).toEqual({ code: "NATIVE_SOURCE_CHANGED", details: { file: 0 } });
    rmSync(program.files[0].path);
    expect(await refusal(run)).toEqual({ code: "NATIVE_SOURCE_NOT_FOUND", details: { file: 0 } });
  });

  it("refuse work that was cancelled", async () => {
    const arena = createStagedArena();
    const program = channelProgram(sourcePath(), VALUES);
    const cancel = core.createCancel();
    core.cancel(cancel);
    for (const call of [
      () => core.runLayer(arena, "staging", program, cancel),
      () => core.exchange(arena, SPANS, cancel),
      () => core.digest(arena, "live", SPANS, cancel),
      () => core.exportLive(arena, join(directory, "export"), HEADER, SPANS, cancel),
    ]) {
      expect((await refusal(call)).code).toBe("NATIVE_CANCELLED");
    }
  });

  it("reject, and never throw, what is not a program", async () => {
    const arena = createStagedArena();
    const cancel = core.createCancel();
    const good = channelProgram(sourcePath(), VALUES);
    const spoiled: unknown[] = [
      null,
      { ...good, files: null },
      { ...good, files: [{ ...good.files[0], inode: "x" }] },
      { ...good, ops: [1] },
      { ...good, ops: good.ops.subarray(1) },
      { ...good, slices: new Float64Array(0) },
      { ...good, scales: undefined },
      { ...good, scales: new Float64Array(SCALE_FIELDS.length - 1) },
      { ...good, agreements: [0, 0] },
      { ...good, agreements: new Float64Array([0, 1]) },
      { ...good, derived: null },
      { ...good, derived: new Float64Array(DERIVED_FIELDS.length) },
      { ...good, allowNonFinite: undefined },
    ];
    for (const program of spoiled) {
      const promise = core.runLayer(arena, "staging", program as LayerProgram, cancel);
      expect((await refusal(() => promise)).code).toBe("NATIVE_INVALID_ARGUMENT");
    }
    expect((await refusal(() => core.exchange(arena, [{ offset: 1020, bytes: 5 }], cancel))).code).toBe(
      "NATIVE_INVALID_ARGUMENT",
    );
    core.closeArena(arena); // the refused calls are not in flight
  });
});

describe("the arena", () => {
  it("is a file with the header in front, attached to by the same header only", async () => {
    const arena = createStagedArena();
    await core.runLayer(arena, "live", channelProgram(sourcePath(), VALUES), core.createCancel());
    core.closeArena(arena);
    const path = join(directory, "live");
    expect(readFileSync(path).subarray(0, 4096)).toEqual(Buffer.from(HEADER));

    const options = {
      device,
      path,
      mode: "attach",
      headerBytes: HEADER,
      dataBytes: DATA_BYTES,
      ipcHandle: "",
    } as const;
    const again = core.openArena(options);
    expect(await core.digest(again, "live", SPANS, core.createCancel())).not.toBe("0000000000000000");
    for (const other of [
      { dataBytes: 512 },
      { headerBytes: new Uint8Array(4096) },
      { headerBytes: new Uint8Array(9) },
      { ipcHandle: "00".repeat(64) },
    ]) {
      expect((await refusal(() => core.openArena({ ...options, ...other }))).code).toBe("NATIVE_INVALID_ARGUMENT");
    }
    const missing = { ...options, path: join(directory, "nothing") };
    expect(await refusal(() => core.openArena(missing))).toEqual({ code: "NATIVE_IO", details: { errno: 2 } });
  });

  it("is refused when the disk has no room for it, with nothing left behind", async () => {
    const path = join(directory, "huge");
    const dataBytes = 2 ** 50;
    const error = await refusal(() => createArena(dataBytes, path));
    expect(error).toEqual({ code: "NATIVE_OUT_OF_MEMORY", details: { bytes: dataBytes + 4096 } });
    expect(existsSync(path)).toBe(false);
  });

  it("needs its staging open to write there, and gives it back", async () => {
    const arena = createArena();
    const program = channelProgram(sourcePath(), VALUES);
    const run = () => core.runLayer(arena, "staging", program, core.createCancel());
    expect((await refusal(run)).code).toBe("NATIVE_INVALID_ARGUMENT");
    core.openStaging(arena, "host", true);
    await run();
    core.openStaging(arena, "device", false);
    core.closeStaging(arena);
    expect((await refusal(run)).code).toBe("NATIVE_INVALID_ARGUMENT");
  });

  it("cannot be closed while work is in flight, nor used once it is closed", async () => {
    const dataBytes = 1 << 26;
    const arena = createArena(dataBytes);
    const cancel = core.createCancel();
    const digest = () => core.digest(arena, "live", [{ offset: 0, bytes: dataBytes }], cancel);
    const running = Array.from({ length: 20 }, digest); // far more than can end before the next line
    expect((await refusal(() => core.closeArena(arena))).code).toBe("NATIVE_INVALID_ARGUMENT");
    core.cancel(cancel);
    await Promise.allSettled(running);
    core.closeArena(arena);
    const late = () => core.digest(arena, "live", SPANS, core.createCancel());
    expect((await refusal(late)).code).toBe("NATIVE_INVALID_ARGUMENT");
  });

  it("is told apart from other handles", async () => {
    const cancel = core.createCancel();
    expect((await refusal(() => core.closeArena(cancel as unknown as Arena))).code).toBe("NATIVE_INVALID_ARGUMENT");
    expect((await refusal(() => core.closeArena({} as unknown as Arena))).code).toBe("NATIVE_INVALID_ARGUMENT");
  });

  it("is exported as header and spans, in a file that appears whole", async () => {
    const arena = createStagedArena();
    await core.runLayer(arena, "live", channelProgram(sourcePath(), VALUES), core.createCancel());
    const path = join(directory, "export");
    const header = new Uint8Array([1, 2, 3]);
    const spans = [...SPANS].reverse();
    expect(await core.exportLive(arena, path, header, spans, core.createCancel())).toEqual({ bytes: 19 });
    const file = readFileSync(path);
    expect([...file.subarray(0, 3)]).toEqual([1, 2, 3]);
    expect(file.readFloatLE(3)).toBe(1);
    expect([...file.subarray(11)]).toEqual(CODES);
  });
});
