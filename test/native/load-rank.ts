// What a rank holds after it has loaded a plan, through the built core and in this process: staging that was filled with a pattern
// is written, made live, and read from the live file.

import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadNative } from "../../native/native.js";
import type { ArenaTensor, Plan } from "../../orchestrator/contract/plan.js";
import { layoutArena } from "../../orchestrator/planner/arena-layout.js";
import { createResolver } from "../../orchestrator/planner/resolve.js";

const core = loadNative();
const device = core.openDevice("cpu");

export interface HeldTensor extends Pick<ArenaTensor, "dtype" | "shape"> {
  bytes: Uint8Array;
}

/** By kernel tensor. */
export async function loadRank(plan: Plan, rank: number): Promise<Map<string, HeldTensor>> {
  const arena = layoutArena(plan.layout, rank);
  const resolve = createResolver(plan.layout, arena);
  const layers = [...plan.layout.layers.keys()];
  const directory = mkdtempSync(join(tmpdir(), "layercast-rank-"));
  const path = join(directory, "live");
  const { headerBytes, dataBytes } = arena;
  const opened = core.openArena({ device, path, mode: "create", headerBytes, dataBytes, ipcHandle: "" });
  try {
    core.openStaging(opened, "device", true);
    const cancel = core.createCancel();
    for (const phase of ["layer", "finalize"] as const) {
      const { program, spans } = resolve(plan.source, { layers, rank, phase, allowNonFinite: false });
      await core.runLayer(opened, "staging", program, cancel);
      await core.exchange(opened, spans, cancel);
    }
    const live = new Uint8Array(readFileSync(path)).subarray(headerBytes.byteLength);
    return new Map(
      arena.tensors.map(({ name, dtype, shape, offset, bytes }) => [
        name,
        { dtype, shape, bytes: live.subarray(offset, offset + bytes) },
      ]),
    );
  } finally {
    core.closeArena(opened);
    rmSync(directory, { recursive: true });
  }
}
