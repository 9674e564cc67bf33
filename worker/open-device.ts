// The device that a rank's arena lies on, who holds memory of it, and what happens when it is lost.

import { join } from "node:path";
import { type Device, isNativeError, type NativeCore } from "../native/native.js";
import { LayercastError } from "../orchestrator/contract/errors.js";
import { type Holders, openHolders } from "./holder.js";

/** Opened once for a process's whole life: on a GPU each opening makes lanes and their buffers of its own. */
export interface RequestedDevice {
  /** `cpu` or `cuda:N`. */
  name: string;
  device: Device;
}

export interface RankDevice {
  device: Device;
  holders: Holders | null;
}

/** Device memory stays this long without a worker: time enough to start another, and not for ever. */
const HOLD_MS = 60_000;
/** A holder that looks whether it is still needed has the file alone for a moment. */
const ALIVE_WITHIN_MS = 5_000;

/** Throws `invalid_request` with the reason when it is not there: what settings have wrong is said before anything is waited for. */
export function requireDevice(core: NativeCore, name: string): RequestedDevice {
  if (name !== "cpu" && !name.startsWith("cuda")) throw refusal(name, "give cpu, or cuda:0 for the first GPU");
  return { name, device: open(core, name) };
}

export function openRankDevice(core: NativeCore, { name, device }: RequestedDevice, directory: string): RankDevice {
  const [, ordinal] = /^cuda(?::(\d+))?$/.exec(name) ?? [];
  if (name === "cpu") return { device, holders: null };
  const alivePath = join(directory, "alive");
  core.shareLock(alivePath, ALIVE_WITHIN_MS);
  const graceMs = Number(process.env.LAYERCAST_HOLD_MS ?? HOLD_MS);
  return { device, holders: openHolders({ core, ordinal: Number(ordinal ?? 0), alivePath, graceMs }) };
}

function open(core: NativeCore, name: string): Device {
  if (name !== "cpu" && core.cudaUnavailable !== null) throw refusal(name, core.cudaUnavailable);
  try {
    return core.openDevice(name);
  } catch (error) {
    if (isNativeError(error) && error.code === "NATIVE_NO_DEVICE") throw refusal(name, error.message);
    throw error;
  }
}

function refusal(device: string, why: string): LayercastError {
  return new LayercastError("invalid_request", `device ${device} is not available: ${why}`, { device });
}

/** A process whose device is lost can do nothing any more: its successor finds the device again, or says that it is gone. */
export function exitWithDevice(core: NativeCore, onLost: (reason: string) => void): NativeCore {
  const watch = async <Result>(call: Promise<Result>): Promise<Result> => {
    try {
      return await call;
    } catch (error) {
      if (isNativeError(error) && error.code === "NATIVE_NO_DEVICE") onLost(`the device is lost: ${error.message}`);
      throw error;
    }
  };
  // The addon's own object stays the prototype: its getters are read there.
  return Object.assign(Object.create(core) as NativeCore, {
    runLayer: (...args) => watch(core.runLayer(...args)),
    exchange: (...args) => watch(core.exchange(...args)),
    digest: (...args) => watch(core.digest(...args)),
    exportLive: (...args) => watch(core.exportLive(...args)),
  } satisfies Pick<NativeCore, "runLayer" | "exchange" | "digest" | "exportLive">);
}
