// Buffers through the built addon: packed from files, read by programs, given back. What they hold byte by byte is the
// business of buffers_test.cc beside this file.

import { mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type Buffers, COPY_FIELDS, loadNative, type ProgramFile } from "../../native/native.js";
import { CODES, channelProgram, numbers, planned, type Row, VALUES } from "./channel-program.js";
import { refusal } from "./refusal.js";

const core = loadNative();
const PAGE = 4096; // of what is filled here, whatever the system's is
const MANY_BYTES = 1 << 26;
const GIVEN_BACK_MS = 10_000;

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "layercast-buffers-"));
});
afterEach(() => rmSync(directory, { recursive: true }));

const copies = (...rows: Row<typeof COPY_FIELDS>[]): Float64Array => numbers(COPY_FIELDS, rows);

const whole = (file: ProgramFile, toOffset: number): Float64Array =>
  copies({ file: 0, offset: 0, rowStride: 0, rows: 1, rowBytes: file.sizeBytes, toOffset });

function fileOf(bytes: Uint8Array): ProgramFile {
  const path = join(directory, "file");
  writeFileSync(path, bytes);
  return planned(path);
}

const heldBytes = (buffers: Buffers): number => core.describeBuffers(buffers).heldBytes;

function isThere({ path, inode }: ProgramFile): boolean {
  return String(statSync(path, { bigint: true, throwIfNoEntry: false })?.ino) === inode;
}

async function untilGivenBack(file: ProgramFile): Promise<void> {
  for (const end = Date.now() + GIVEN_BACK_MS; isThere(file); await sleep(5)) {
    if (Date.now() > end) throw new Error(`${file.path} is still there`);
  }
}

describe("buffers", () => {
  it("are a file of their size that holds only what was filled", async () => {
    const buffers = core.openBuffers(2 ** 40);
    const { file, heldBytes: before } = core.describeBuffers(buffers);
    expect(before).toBe(0);
    expect(file).toEqual(planned(file.path));
    expect(file.sizeBytes).toBe(2 ** 40);

    const source = fileOf(new Uint8Array(16 * PAGE).fill(7));
    const report = await core.fillBuffers(buffers, [source], whole(source, 2 ** 39), core.createCancel());
    expect(report).toEqual({ bytesRead: 16 * PAGE, readMs: expect.any(Number) });
    expect(report.readMs).toBeGreaterThan(0);
    expect(core.describeBuffers(buffers).file).toEqual(planned(file.path));
    expect(heldBytes(buffers)).toBeGreaterThanOrEqual(16 * PAGE);
    expect(heldBytes(buffers)).toBeLessThan(2 ** 20);
    core.closeBuffers(buffers);
  });

  it("give pages back, and are filled there again", async () => {
    const buffers = core.openBuffers(MANY_BYTES);
    const source = fileOf(new Uint8Array(MANY_BYTES).fill(7));
    const fill = () => core.fillBuffers(buffers, [source], whole(source, 0), core.createCancel());
    await fill();
    expect(heldBytes(buffers)).toBe(MANY_BYTES);
    expect(await core.freeBuffers(buffers, [{ offset: 0, bytes: MANY_BYTES / 2 }])).toBeUndefined();
    expect(heldBytes(buffers)).toBe(MANY_BYTES / 2);
    await fill();
    expect(readFileSync(core.describeBuffers(buffers).file.path).every((byte) => byte === 7)).toBe(true);
    core.closeBuffers(buffers);
  });

  it("are read by a program like the file that they were packed from", async () => {
    const program = channelProgram(join(directory, "values"), VALUES);
    const apart = Buffer.concat([new Uint8Array(5), Buffer.from(new Float32Array(VALUES).buffer)]);
    const buffers = core.openBuffers(32);
    const rows = copies(
      { file: 0, offset: 5 + 16, rowStride: 16, rows: 1, rowBytes: 16, toOffset: 16 },
      { file: 0, offset: 5, rowStride: 8, rows: 2, rowBytes: 8, toOffset: 0 },
    );
    await core.fillBuffers(buffers, [fileOf(apart)], rows, core.createCancel());

    const path = join(directory, "live");
    const headerBytes = new Uint8Array(PAGE).fill(0x20);
    const options = { path, mode: "create", headerBytes, dataBytes: 1024, ipcHandle: "" } as const;
    const arena = core.openArena({ device: core.openDevice("cpu"), ...options });
    const read = (files: ProgramFile[]) => core.runLayer(arena, "live", { ...program, files }, core.createCancel());
    const { digest } = await read(program.files);
    const fromBuffers = await read([core.describeBuffers(buffers).file]);
    expect(fromBuffers).toMatchObject({ digest, bytesRead: 32 });
    expect([...readFileSync(path).subarray(PAGE, PAGE + 8)]).toEqual(CODES);
    core.closeArena(arena);
    core.closeBuffers(buffers);
  });

  it("refuse a table that is none, or that reaches outside, with nothing held", async () => {
    const buffers = core.openBuffers(100);
    const source = fileOf(new Uint8Array(100));
    const good = whole(source, 0);
    const spoiled: unknown[] = [null, [...good], good.subarray(1)];
    for (let field = 0; field < COPY_FIELDS.length; field++) {
      for (const value of [-1, 0.5, Number.NaN, 2 ** 53]) spoiled.push(good.with(field, value));
      if (COPY_FIELDS[field] !== "rowStride") spoiled.push(good.with(field, 101));
    }
    for (const table of spoiled) {
      const filling = core.fillBuffers(buffers, [source], table as Float64Array, core.createCancel());
      expect((await refusal(() => filling)).code).toBe("NATIVE_INVALID_ARGUMENT");
    }
    const freeing = core.freeBuffers(buffers, [{ offset: 1, bytes: 100 }]);
    expect((await refusal(() => freeing)).code).toBe("NATIVE_INVALID_ARGUMENT");
    expect(heldBytes(buffers)).toBe(0);
    core.closeBuffers(buffers);
  });

  it("refuse a size of nothing, or of more than there are addresses for", async () => {
    expect((await refusal(() => core.openBuffers(0))).code).toBe("NATIVE_INVALID_ARGUMENT");
    const error = await refusal(() => core.openBuffers(2 ** 52));
    expect(error).toEqual({ code: "NATIVE_OUT_OF_MEMORY", details: { bytes: 2 ** 52 } });
  });

  it("refuse a file that changed or is missing, naming it", async () => {
    const buffers = core.openBuffers(100);
    const source = fileOf(new Uint8Array(100));
    truncateSync(source.path, 50);
    const fill = () => core.fillBuffers(buffers, [source], whole(source, 0), core.createCancel());
    expect(await refusal(fill)).toEqual({ code: "NATIVE_SOURCE_CHANGED", details: { file: 0 } });
    rmSync(source.path);
    expect(await refusal(fill)).toEqual({ code: "NATIVE_SOURCE_NOT_FOUND", details: { file: 0 } });
    core.closeBuffers(buffers);
  });

  it("are not filled by work that was cancelled", async () => {
    const buffers = core.openBuffers(MANY_BYTES);
    const source = fileOf(new Uint8Array(MANY_BYTES));
    const cancel = core.createCancel();
    // Far more than can end before the next line.
    const filling = Array.from({ length: 20 }, () => core.fillBuffers(buffers, [source], whole(source, 0), cancel));
    core.cancel(cancel);
    const outcomes = await Promise.allSettled(filling);
    expect(outcomes.at(-1)).toMatchObject({ status: "rejected", reason: { code: "NATIVE_CANCELLED" } });
    core.closeBuffers(buffers);
  });

  it("closed with work in flight, let it end, and then give all memory back", async () => {
    const buffers = core.openBuffers(MANY_BYTES);
    const source = fileOf(new Uint8Array(MANY_BYTES).fill(7));
    const { file } = core.describeBuffers(buffers);
    const filling = core.fillBuffers(buffers, [source], whole(source, 0), core.createCancel());
    const freeing = core.freeBuffers(buffers, [{ offset: 0, bytes: PAGE }]);
    core.closeBuffers(buffers);
    expect(await filling).toMatchObject({ bytesRead: MANY_BYTES });
    await freeing;
    await untilGivenBack(file);
  });

  it("once closed are no buffers any more", async () => {
    const buffers = core.openBuffers(100);
    const { file } = core.describeBuffers(buffers);
    const source = fileOf(new Uint8Array(100));
    core.closeBuffers(buffers);
    for (const call of [
      () => core.describeBuffers(buffers),
      () => core.fillBuffers(buffers, [source], whole(source, 0), core.createCancel()),
      () => core.freeBuffers(buffers, []),
      () => core.closeBuffers(buffers),
      () => core.closeBuffers(core.createCancel() as unknown as Buffers),
    ]) {
      expect((await refusal(call)).code).toBe("NATIVE_INVALID_ARGUMENT");
    }
    await untilGivenBack(file);
  });
});
