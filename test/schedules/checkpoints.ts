// The model of the schedules: three layers, each a weight of one number and a scale that waits for the rank barrier. A checkpoint
// is one number, and every byte that comes from it is that number. A second layout has one layer more.

import type { RetryPolicy } from "../../orchestrator/contract/jobs.js";
import type { KernelTensor, Layout } from "../../orchestrator/contract/plan.js";
import type { ReloadPlan } from "../../orchestrator/fleet/plan-store.js";

/** 256 bytes of F32. */
const COLS = 64;

export type LayoutName = "small" | "large";

function tensor(name: string, index: number, phase: KernelTensor["phase"]): KernelTensor {
  const rows = 1;
  return {
    name,
    dtype: "F32",
    shape: [rows, COLS],
    rows,
    cols: COLS,
    parts: [
      {
        tensors: [index],
        firsts: [0],
        rows,
        cols: COLS,
        rowStride: COLS,
        colStride: 1,
        rule: { kind: "replicate" },
        padTo: 1,
        scales: null,
      },
    ],
    experts: null,
    derived: null,
    scheme: "none",
    scale: null,
    roundTo: null,
    constant: null,
    mustBePositive: false,
    mustAgree: false,
    phase,
  };
}

function layoutOf(layers: number, tensorParallelSize: number): Layout {
  const names = Array.from({ length: layers }, (_, layer) => [`layer.${layer}.weight`, `layer.${layer}.scale`]);
  return {
    modelType: "schedule",
    tensorParallelSize,
    expertParallel: false,
    scheme: "none",
    layers: names.map(([weight = "", scale = ""], layer) => ({
      name: `layer.${layer}`,
      kernelTensors: [tensor(weight, 2 * layer, "layer"), tensor(scale, 2 * layer + 1, "finalize")],
    })),
    checkpointTensors: names.flat().map((name) => ({ name, shape: [1, COLS] })),
  };
}

export function planOf(
  checkpoint: number,
  layoutName: LayoutName,
  tensorParallelSize: number,
  layersPerJob: number,
  retry: RetryPolicy,
): ReloadPlan {
  const layers = layoutName === "small" ? 3 : 4;
  const layout = layoutOf(layers, tensorParallelSize);
  const tensors = layout.checkpointTensors.length;
  const jobs = Array.from({ length: Math.ceil(layers / layersPerJob) }, (_, job) =>
    Array.from({ length: layers }, (_, layer) => layer).slice(job * layersPerJob, (job + 1) * layersPerJob),
  );
  return {
    layout,
    layoutDigest: layoutName,
    mappingDigest: layoutName,
    source: {
      files: [{ path: String(checkpoint), sizeBytes: 1, mtimeNs: "1", inode: "1", headerDigest: "" }],
      file: new Array<number>(tensors).fill(0),
      offset: new Array<number>(tensors).fill(0),
      dtype: new Array<"F32">(tensors).fill("F32"),
    },
    sourceDigest: String(checkpoint),
    layerJobs: jobs,
    allowNonFinite: false,
    stagingPlace: "auto",
    retry,
    ...{ kind: "safetensors", base: null, limits: { maxBufferBytes: null, warnBufferBytes: 0 }, retainExport: false },
    warnings: [],
  };
}
