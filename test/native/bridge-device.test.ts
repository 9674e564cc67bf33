// The bridge on a device that is not the CPU, which here is the stand-in: what differs, and how it is lost.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { type Arena, type Device, loadNative } from "../../native/native.js";
import { CODES, channelProgram, SPANS, VALUES } from "./channel-program.js";
import { refusal } from "./refusal.js";
import { useStandIn } from "./stand-in.js";

const core = loadNative();
const HEADER = new Uint8Array(4096).fill(0x20);
const DATA_BYTES = 2 ** 20;
const TOTAL_BYTES = useStandIn(3.5 * DATA_BYTES);
const device = core.openDevice("cuda:1");

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "layercast-bridge-"));
});
afterEach(() => rmSync(directory, { recursive: true }));

/** Memory of the device, by its handle, as long as the tests run. */
let held: { ipcHandle: string; end: () => void };
beforeAll(async () => {
  const memory = ["--library", core.cudaLibraryPath, "--device", "1", "--bytes", String(DATA_BYTES)];
  const life = ["--alive", join(tmpdir(), "nobody"), "--grace-ms", "60000"];
  const holder = spawn(core.holderPath, [...memory, ...life], { stdio: ["ignore", "pipe", "inherit"] });
  const [printed] = (await once(holder.stdout, "data")) as [Buffer];
  held = { ipcHandle: printed.toString().trim(), end: () => void holder.kill() };
});
afterAll(() => held.end());

function openArena(mode: "create" | "attach" = "create"): Arena {
  const path = join(directory, "live.safetensors.header");
  const { ipcHandle } = held;
  return core.openArena({ device, path, mode, headerBytes: HEADER, dataBytes: DATA_BYTES, ipcHandle });
}

const facts = () => core.describeDevice(device);

describe("a device", () => {
  it("says what it is and what room it has", () => {
    expect(core.cudaUnavailable).toBeNull();
    expect(facts()).toEqual({
      kind: "cuda",
      name: "stand-in device 1 (memory of the host)",
      uuid: `${Buffer.from("stand-in device").toString("hex")}01`,
      totalBytes: TOTAL_BYTES,
      freeBytes: TOTAL_BYTES - DATA_BYTES,
      pinnedBytes: 0,
    });
    expect(core.describeDevice(core.openDevice("cpu"))).toMatchObject({ kind: "cpu", uuid: "0".repeat(32) });
  });

  it("that is not there is refused with its number, and another handle is none", async () => {
    expect(await refusal(() => core.openDevice("cuda:77"))).toEqual({
      code: "NATIVE_NO_DEVICE",
      details: { ordinal: 77 },
    });
    expect((await refusal(() => core.openDevice("tpu:0"))).code).toBe("NATIVE_INVALID_ARGUMENT");
    const cancel = core.createCancel() as unknown as Device;
    expect((await refusal(() => core.describeDevice(cancel))).code).toBe("NATIVE_INVALID_ARGUMENT");
  });
});

describe("an arena on a device", () => {
  it("is a file of its header, and held memory that is written, exchanged, digested and exported as files are", async () => {
    const arena = openArena();
    expect(readFileSync(join(directory, "live.safetensors.header"))).toEqual(Buffer.from(HEADER));
    const cancel = core.createCancel();
    const program = channelProgram(join(directory, "file"), VALUES);
    for (const where of ["device", "host"] as const) {
      core.openStaging(arena, where, true);
      const { digest } = await core.runLayer(arena, "staging", program, cancel);
      await core.exchange(arena, SPANS, cancel);
      expect(await core.digest(arena, "live", SPANS, cancel)).toBe(digest);
    }
    core.closeArena(arena);
    const path = join(directory, "export");
    await core.exportLive(openArena("attach"), path, HEADER, SPANS, cancel);
    expect([...readFileSync(path).subarray(4096, 4104)]).toEqual(CODES);
  });

  it("takes staging from the device or from pinned memory of the host, and says what was free when there was none", async () => {
    const arena = openArena();
    const freeBytes = facts().freeBytes;
    core.openStaging(arena, "device", false);
    expect(facts()).toMatchObject({ freeBytes: freeBytes - DATA_BYTES, pinnedBytes: 0 });
    core.openStaging(arena, "host", false);
    expect(facts()).toMatchObject({ freeBytes, pinnedBytes: DATA_BYTES });
    const others = [openArena("attach"), openArena("attach")];
    for (const other of others) core.openStaging(other, "device", false);
    expect(await refusal(() => core.openStaging(arena, "device", false))).toEqual({
      code: "NATIVE_OUT_OF_MEMORY",
      details: { bytes: DATA_BYTES, freeBytes: freeBytes - 2 * DATA_BYTES },
    });
    expect(facts().pinnedBytes).toBe(0);
    for (const each of [arena, ...others]) core.closeArena(each);
    expect(facts().freeBytes).toBe(freeBytes);
  });

  it("has files pinned that it is to read by itself, and gives up those that are not named any more", async () => {
    const arena = openArena();
    const { files, ...rest } = channelProgram(join(directory, "file"), VALUES);
    expect(await core.pinSources(device, files, 31)).toEqual({ pinnedBytes: 0 });
    expect(await core.pinSources(device, files, 32)).toEqual({ pinnedBytes: 32 });
    expect(facts().pinnedBytes).toBe(32);
    const report = await core.runLayer(arena, "live", { files, ...rest }, core.createCancel());
    expect(await core.pinSources(device, [], 32)).toEqual({ pinnedBytes: 0 });
    expect(facts().pinnedBytes).toBe(0);
    expect(await core.runLayer(arena, "live", { files, ...rest }, core.createCancel())).toMatchObject({
      digest: report.digest,
      bytesRead: 32,
    });
  });

  it("refuses all work once the device is lost, and is closed all the same", async () => {
    const arena = openArena();
    core.openStaging(arena, "device", true);
    const path = join(directory, "lost");
    process.env.LAYERCAST_STAND_IN_LOST = path;
    writeFileSync(path, "");
    const program = channelProgram(join(directory, "file"), VALUES);
    const cancel = core.createCancel();
    for (const call of [
      () => core.runLayer(arena, "staging", program, cancel),
      () => core.exchange(arena, SPANS, cancel),
      () => core.digest(arena, "live", SPANS, cancel),
      () => core.exportLive(arena, join(directory, "export"), HEADER, SPANS, cancel),
      () => core.describeDevice(device),
      () => core.openDevice("cuda:1"),
    ]) {
      expect(await refusal(call)).toEqual({ code: "NATIVE_NO_DEVICE", details: { ordinal: 1 } });
    }
    core.closeArena(arena);
    delete process.env.LAYERCAST_STAND_IN_LOST;
  });
});
