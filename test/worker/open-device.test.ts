import { tmpdir } from "node:os";
import { expect, it } from "vitest";
import type { Device, NativeCore } from "../../native/native.js";
import { openRankDevice, requireDevice } from "../../worker/open-device.js";

it.each(["cpu", "cuda:1"])(
  "a worker opens %s once: what its settings were judged by is what its arena lies on",
  (name) => {
    const opened: string[] = [];
    const core = {
      cudaUnavailable: null,
      openDevice: (asked: string) => ({ number: opened.push(asked) }) as unknown as Device,
      shareLock: () => {},
    } as unknown as NativeCore;
    const requested = requireDevice(core, name);
    expect(openRankDevice(core, requested, tmpdir()).device).toBe(requested.device);
    expect(opened).toEqual([name]);
  },
);
