// The bridge's control page, its lock, and its threads: what lives longer than a call.

import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type ControlUpdate, loadNative, NATIVE_ABI } from "../../native/native.js";
import { refusal } from "./refusal.js";

const core = loadNative();
const ADDON = join(import.meta.dirname, "../../native/build/Release/layercast.node");

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "layercast-bridge-"));
});
afterEach(() => rmSync(directory, { recursive: true }));

async function runScript(script: string, env: Record<string, string> = {}): Promise<string> {
  const prelude = `const core = require(${JSON.stringify(ADDON)});`;
  const options = { env: { ...process.env, ...env }, timeout: 10_000 };
  const { stdout } = await promisify(execFile)(process.execPath, ["-e", prelude + script], options);
  return stdout.trim();
}

describe("the control page", () => {
  const update: ControlUpdate = {
    epoch: 2 ** 53 - 1,
    arenaId: "0123456789abcdef0123456789abcdef",
    layoutDigest: "ab".repeat(32),
    reload: "reload-1",
    content: "reload-0",
    weightVersion: "step é",
    digest: "fedcba9876543210",
    deviceKind: "cuda",
    deviceUuid: "00112233445566778899aabbccddeeff",
    ipcHandle: "c0ffee".padStart(128, "0"),
    dataOffset: 4096,
    dataBytes: 2 ** 40,
  };

  it("begins empty, is odd while swapping, and then says all that the end of the swap said", () => {
    const control = core.openControl(join(directory, "control"));
    expect(core.readControl(control)).toMatchObject({
      abiVersion: 1,
      state: "empty",
      generation: 0,
      deviceKind: "cpu",
    });
    core.beginSwap(control, 7, "reload-1");
    expect(core.readControl(control)).toMatchObject({ state: "swapping", generation: 1, epoch: 7, reload: "reload-1" });
    core.endSwap(control, update);
    expect(core.readControl(control)).toEqual({
      ...update,
      abiVersion: 1,
      state: "live",
      generation: 2,
    });
  });

  it("is torn for a successor that finds it in the middle of a swap", () => {
    const path = join(directory, "control");
    const first = core.openControl(path);
    core.beginSwap(first, 3, "reload-1");
    core.closeControl(first);
    const second = core.openControl(path);
    expect(core.readControl(second)).toMatchObject({ state: "torn", generation: 1, epoch: 3 });
    core.beginSwap(second, 4, "reload-2");
    expect(core.readControl(second).generation).toBe(1);
    core.endSwap(second, update);
    expect(core.readControl(second)).toMatchObject({ state: "live", generation: 2 });
  });

  it("refuses an end without a beginning, a field of another form, and use once it is closed", async () => {
    const control = core.openControl(join(directory, "control"));
    expect((await refusal(() => core.endSwap(control, update))).code).toBe("NATIVE_INVALID_ARGUMENT");
    core.beginSwap(control, 1, "reload-1");
    for (const wrong of [
      { arenaId: "12" },
      { digest: "x" },
      { epoch: -1 },
      { layoutDigest: "zz".repeat(32) },
      { deviceKind: "tpu" },
      { ipcHandle: "" },
    ]) {
      const error = await refusal(() => core.endSwap(control, { ...update, ...wrong } as ControlUpdate));
      expect(error.code).toBe("NATIVE_INVALID_ARGUMENT");
    }
    core.closeControl(control);
    expect((await refusal(() => core.readControl(control))).code).toBe("NATIVE_INVALID_ARGUMENT");
    const nowhere = join(directory, "nowhere/control");
    expect(await refusal(() => core.openControl(nowhere))).toEqual({ code: "NATIVE_IO", details: { errno: 2 } });
  });
});

describe("processes and threads", () => {
  it("a lock is held until its process ends, however it ends, and names it", async () => {
    const path = join(directory, "lock");
    const script = `console.log(require(${JSON.stringify(ADDON)}).acquireLock(${JSON.stringify(path)}, "me")); setInterval(() => {}, 1e6)`;
    const holder = spawn(process.execPath, ["-e", script], { stdio: ["ignore", "pipe", "inherit"] });
    const [said] = (await once(holder.stdout, "data")) as [Buffer];
    expect(said.toString().trim()).toBe("null");
    expect(core.acquireLock(path, "other")).toBe("me");
    holder.kill("SIGKILL");
    await once(holder, "exit");
    expect(core.acquireLock(path, "other")).toBeNull();
    expect(readFileSync(path, "utf8")).toBe("other");
  });

  it("a lock takes no wait that does not end, nor what is no regular file", async () => {
    const path = join(directory, "alive");
    for (const timeoutMs of [Number.NaN, Number.POSITIVE_INFINITY, -1, 0.5, 1e9]) {
      expect((await refusal(() => core.shareLock(path, timeoutMs))).code).toBe("NATIVE_INVALID_ARGUMENT");
    }
    for (const other of [directory, "/dev/null"]) {
      expect((await refusal(() => core.shareLock(other, 0))).code).toBe("NATIVE_IO");
      expect((await refusal(() => core.acquireLock(other, "me"))).code).toBe("NATIVE_IO");
    }
  });

  it("a lock that is given back again and again is free when its process has ended, or its handle is closed", async () => {
    const path = join(directory, "running.lock");
    const script = `const core = require(${JSON.stringify(ADDON)}); const lock = core.openLock(${JSON.stringify(path)});
      console.log(core.tryLock(lock, "shared")); setInterval(() => {}, 1e6)`;
    const engine = spawn(process.execPath, ["-e", script], { stdio: ["ignore", "pipe", "inherit"] });
    const [said] = (await once(engine.stdout, "data")) as [Buffer];
    expect(said.toString().trim()).toBe("true");
    const [mine, other] = [core.openLock(path), core.openLock(path)];
    expect([core.tryLock(mine, "exclusive"), core.tryLock(other, "shared")]).toEqual([false, true]);
    core.unlock(other);
    engine.kill("SIGKILL");
    await once(engine, "exit");
    expect([core.tryLock(mine, "exclusive"), core.tryLock(other, "shared")]).toEqual([true, false]);
    core.closeLock(mine);
    expect(core.tryLock(other, "exclusive")).toBe(true);
    expect((await refusal(() => core.tryLock(mine, "shared"))).code).toBe("NATIVE_INVALID_ARGUMENT");
    expect((await refusal(() => core.tryLock(other, "alone" as never))).code).toBe("NATIVE_INVALID_ARGUMENT");
    expect((await refusal(() => core.openLock("/dev/null"))).code).toBe("NATIVE_IO");
    core.closeLock(other);
  });

  it("looks for the GPU's library only where it is asked to, and says in a sentence why there is none", async () => {
    const env = { LAYERCAST_CUDA_LIBRARY: join(directory, "nowhere.so") };
    const script = "console.log(core.cudaLibraryPath); console.log(core.cudaUnavailable)";
    const [path, sentence] = (await runScript(script, env)).split("\n");
    expect(path).toBe(env.LAYERCAST_CUDA_LIBRARY);
    expect(sentence).toMatch(/CUDA.*nowhere\.so/);
  });

  it("LAYERCAST_THREADS says how many threads there are, and nonsense is refused", async () => {
    expect(await runScript("console.log(core.threads)", { LAYERCAST_THREADS: "3" })).toBe("3");
    await expect(runScript("", { LAYERCAST_THREADS: "many" })).rejects.toThrow(/LAYERCAST_THREADS/);
  });

  const startWork = (): string => {
    const options = { path: join(directory, "live"), mode: "create", dataBytes: 1 << 26, ipcHandle: "" };
    return `
      const device = core.openDevice("cpu");
      const arena = core.openArena({ device, ...${JSON.stringify(options)}, headerBytes: new Uint8Array(4096) });
      const spans = [{ offset: 0, bytes: ${1 << 26} }];
      const work = () => core.digest(arena, "live", spans, core.createCancel());`;
  };

  it("a promise keeps the process until it is settled", async () => {
    expect(await runScript(`${startWork()} work().then((digest) => console.log(digest))`)).toBe("0000000000000000");
  });

  it("a process can exit, and a worker thread end, with work in flight", async () => {
    expect(await runScript(`${startWork()} for (let i = 0; i < 50; i++) work(); process.exit(0)`)).toBe("");
    const inWorker = `const core = require(${JSON.stringify(ADDON)}); ${startWork()}
      for (let i = 0; i < 50; i++) work(); process.exit(0)`;
    const script = `
      const { Worker } = require("node:worker_threads");
      new Worker(${JSON.stringify(inWorker)}, { eval: true }).on("exit", (code) => console.log("ended", code, core.abi));`;
    expect(await runScript(script)).toBe(`ended 0 ${NATIVE_ABI}`);
  });
});
