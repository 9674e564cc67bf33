// What a rank holds after it has loaded a plan, through the built core and in this process: staging that was filled with a pattern
// is written, made live, and exported. On the CPU, or on the GPU that LAYERCAST_TEST_DEVICE names.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadNative, type Span } from "../../native/native.js";
import type { ArenaLayout, ArenaTensor, Plan } from "../../orchestrator/contract/plan.js";
import { layoutArena } from "../../orchestrator/program/arena-layout.js";
import { layerGeometry, placesOf } from "../../orchestrator/program/rank-geometry.js";
import { createResolver } from "../planner/resolver.js";

const core = loadNative();
const DEVICE = process.env.LAYERCAST_TEST_DEVICE ?? "cpu";
const device = core.openDevice(DEVICE);

export interface HeldTensor extends Pick<ArenaTensor, "dtype" | "shape"> {
  bytes: Uint8Array;
}

/** By kernel tensor. */
export async function loadRank(plan: Plan, rank: number): Promise<Map<string, HeldTensor>> {
  const { tensors, headerBytes, dataBytes } = layoutArena(plan.layout, rank);
  const directory = mkdtempSync(join(tmpdir(), "layercast-rank-"));
  const holder = DEVICE === "cpu" ? null : await holdMemory(dataBytes);
  const path = join(directory, "live");
  const ipcHandle = holder?.ipcHandle ?? "";
  const arena = core.openArena({ device, path, mode: "create", headerBytes, dataBytes, ipcHandle });
  try {
    core.openStaging(arena, "device", true);
    if (DEVICE !== "cpu") await core.pinSources(device, plan.source.files, 2 ** 30);
    const cancel = core.createCancel();
    const resolve = createResolver(plan.layout, { tensors, headerBytes, dataBytes });
    const layers = [...plan.layout.layers.keys()];
    for (const phase of ["layer", "finalize"] as const) {
      const { program } = resolve(plan.source, { layers, rank, phase, allowNonFinite: false });
      await core.runLayer(arena, "staging", program, cancel);
      await core.exchange(arena, spansOf(plan, { tensors, headerBytes, dataBytes }, rank, phase), cancel);
    }
    const exported = join(directory, "exported");
    await core.exportLive(arena, exported, headerBytes, [{ offset: 0, bytes: dataBytes }], cancel);
    const live = new Uint8Array(readFileSync(exported)).subarray(headerBytes.byteLength);
    return new Map(
      tensors.map(({ name, dtype, shape, offset, bytes }) => [
        name,
        { dtype, shape, bytes: live.subarray(offset, offset + bytes) },
      ]),
    );
  } finally {
    core.closeArena(arena);
    holder?.end();
    rmSync(directory, { recursive: true });
  }
}

/** What a phase writes. */
function spansOf(plan: Plan, arena: ArenaLayout, rank: number, phase: "layer" | "finalize"): Span[] {
  const places = placesOf(arena);
  return plan.layout.layers.flatMap((_, layer) => {
    const { kernels, derived } = layerGeometry(plan.layout, places, layer, { rank, phase });
    return [...kernels, ...derived].flatMap(({ spans }) => spans);
  });
}

/** Memory of a GPU for a live half. */
async function holdMemory(bytes: number): Promise<{ ipcHandle: string; end: () => void }> {
  const ordinal = DEVICE.replace("cuda:", "");
  const memory = ["--library", core.cudaLibraryPath, "--device", ordinal, "--bytes", String(bytes)];
  const life = ["--alive", join(tmpdir(), "nobody"), "--grace-ms", "60000"];
  const holder = spawn(core.holderPath, [...memory, ...life], { stdio: ["ignore", "pipe", "inherit"] });
  const [printed] = (await once(holder.stdout, "data")) as [Buffer];
  return { ipcHandle: printed.toString().trim(), end: () => void holder.kill() };
}
