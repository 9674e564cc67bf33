// What a rank's JS thread spends on a reload of all layers, without a byte being read: what it keeps of the layout, the programs of
// a pull, one a layer, and those of a push in which each bucket has a layer's tensors whole.

import type { Plan } from "../../orchestrator/contract/plan.js";
import type { BucketPiece } from "../../orchestrator/contract/push.js";
import { layoutArena } from "../../orchestrator/program/arena-layout.js";
import { makeProgram } from "../../orchestrator/program/make-program.js";
import { matricesOfLayer, matricesOfRank } from "../../orchestrator/program/rank-matrices.js";
import { inCheckpoint } from "../../orchestrator/program/resolve.js";
import { type Cells, type CellWrite, cellWrite, matrixAt, newCells } from "../../worker/intake/cells.js";
import { arrivalsOf, bucketWrite, findInBucket, writableRows } from "../../worker/push/arrivals.js";

export interface RankReport {
  /** Before the first bucket. */
  keptMs: number;
  keptBytes: number;
  /** Programs of all layers, once the code is compiled. */
  pullMs: number;
  pushMs: number;
  /** Finding what the buckets bring and what can be written with it. */
  arriveMs: number;
}

const RANK = 0;

/** The process must have been started with --expose-gc. */
export function measureRank(plan: Plan): RankReport {
  const { layout, source } = plan;
  const arena = layoutArena(layout, RANK);
  const heldBefore = heldBytes();
  const startedAt = performance.now();
  const matrices = matricesOfRank(layout, arena, RANK);
  const shapes = layout.checkpointTensors.map(({ shape }) => shape);
  const cells = newCells(matrices, source.dtype, shapes);
  const keptMs = performance.now() - startedAt;
  const keptBytes = heldBytes() - heldBefore;
  const pull = () => {
    for (const layer of layout.layers.keys()) {
      const writes = matricesOfLayer(matrices, layer).map((index) => wholeMatrix(cells, index));
      makeProgram(writes, [], inCheckpoint(source, false));
    }
  };
  pull();
  push(plan, cells);
  const pullMs = timeOf(pull);
  return { keptMs, keptBytes, pullMs, ...push(plan, cells) };
}

function wholeMatrix(cells: Cells, index: number): CellWrite {
  return cellWrite(cells, index, { from: 0, to: matrixAt(cells, index).geometry.rows });
}

function push({ layout, source }: Plan, cells: Cells): Pick<RankReport, "pushMs" | "arriveMs"> {
  let [pushMs, arriveMs] = [0, 0];
  const files = [{ path: "bucket", sizeBytes: 0, mtimeNs: "0", inode: "0" }];
  for (const pieces of layerBuckets(layout)) {
    const startedAt = performance.now();
    const writes = [...arrivalsOf(cells, pieces)].flatMap(([index, arrivals]) =>
      writableRows(cells, index, arrivals).map((range) => bucketWrite(cells, index, range, arrivals)),
    );
    const arrivedAt = performance.now();
    makeProgram(writes, [], {
      files,
      dtypes: source.dtype,
      allowNonFinite: false,
      find: (write, window, from, to) => findInBucket(cells, write, window, from, to),
    });
    arriveMs += arrivedAt - startedAt;
    pushMs += performance.now() - arrivedAt;
  }
  return { pushMs, arriveMs };
}

/** By layer: its tensors, whole. */
function layerBuckets({ layers, checkpointTensors }: Plan["layout"]): BucketPiece[][] {
  return layers.map(({ kernelTensors }) => {
    const parts = kernelTensors.flatMap((kernel) => kernel.parts);
    const tensors = new Set(parts.flatMap((part) => [...part.tensors, ...(part.scales?.tensors ?? [])]));
    return [...tensors].map((tensor) => {
      const { shape = [] } = checkpointTensors[tensor] ?? {};
      return { tensor, firstRow: 0, rows: shape[0] ?? 1, offset: 0 };
    });
  });
}

function timeOf(run: () => void): number {
  const startedAt = performance.now();
  run();
  return performance.now() - startedAt;
}

function heldBytes(): number {
  globalThis.gc?.();
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}
