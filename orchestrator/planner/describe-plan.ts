// Turns a plan into what POST /v1/plans and a dry run answer: layers and their jobs, bytes a rank reads and holds, memory.

import type { Plan } from "../contract/plan.js";
import type { PlanView } from "../contract/reload.js";
import { layoutArenas } from "../program/arena-layout.js";
import { arenaFileBytes, estimateDeviceBytes, estimatePeakBytes } from "./estimate-memory.js";
import { groupLayers } from "./group-layers.js";
import { heldBytesOf, mostHeldBytesOf, readBytesOf } from "./layer-bytes.js";

/** What a plan's jobs and memory depend on besides the plan. */
export interface PlanHost {
  layersPerJob: "auto" | number;
  autoJobBytes?: number;
  /** Threads of a rank's core. */
  threads: number;
}

export function describePlan(plan: Plan, { layersPerJob, autoJobBytes, threads }: PlanHost): PlanView {
  const { layout } = plan;
  const jobs = groupLayers(plan, layersPerJob, autoJobBytes);
  const jobOf = jobs.flatMap((layers, job) => layers.map(() => job));
  const ranks = Array.from({ length: layout.tensorParallelSize }, (_, rank) => rank);
  const readBytes = ranks.map((rank) => layout.layers.map((layer) => readBytesOf(plan, layer, rank)));
  const layers = layout.layers.map((layer, index) => ({
    name: layer.name,
    job: jobOf[index] ?? 0,
    kernel_tensors: layer.kernelTensors.length + layer.kernelTensors.filter(({ scale }) => scale !== null).length,
    read_bytes: Math.max(...readBytes.map((ofRank) => ofRank[index] ?? 0)),
    held_bytes: mostHeldBytesOf(layout, layer),
  }));
  return {
    model_type: layout.modelType,
    tensor_parallel_size: layout.tensorParallelSize,
    expert_parallel: layout.expertParallel,
    recipe: layout.scheme,
    layout_digest: plan.layoutDigest,
    source_digest: plan.sourceDigest,
    layers,
    ranks: describeRanks(plan, readBytes, threads),
    threads,
    jobs_per_rank: jobs.length,
    skipped: plan.skipped,
    warnings: [...plan.warnings],
  };
}

/** `readBytes`: by rank and layer. */
function describeRanks({ layout }: Plan, readBytes: readonly number[][], threads: number): PlanView["ranks"] {
  return layoutArenas(layout).map((arena, rank) => ({
    rank,
    read_bytes: (readBytes[rank] ?? []).reduce((sum, bytes) => sum + bytes, 0),
    held_bytes: layout.layers.reduce((sum, layer) => sum + heldBytesOf(layout, layer, rank), 0),
    arena_bytes: arenaFileBytes(arena),
    peak_memory_bytes: estimatePeakBytes(layout, arena, threads),
    device_memory_bytes: estimateDeviceBytes(layout, arena, threads),
  }));
}
