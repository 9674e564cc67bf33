// The stand-in device (stand_in_device.cc) for the tests of one file: named before the core first looks for a GPU.

import { join } from "node:path";

export const STAND_IN_LIBRARY = join(import.meta.dirname, "../../native/build/Release/layercast_stand_in.so");

/** Gives this process, and those that it starts, a device with about so much memory, which no other test's processes share. */
export function useStandIn(bytes: number): number {
  const totalBytes = bytes + process.pid;
  process.env.LAYERCAST_CUDA_LIBRARY = STAND_IN_LIBRARY;
  process.env.LAYERCAST_STAND_IN_BYTES = String(totalBytes);
  return totalBytes;
}
