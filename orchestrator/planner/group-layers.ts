// Groups the layers of a plan into the jobs of a rank: consecutive layers, so many that a job lasts long enough to hide what
// the queue costs a job, and so few that jobs in flight overlap and a retry is cheap.

import type { Plan } from "../contract/plan.js";
import { mostHeldBytesOf, mostReadBytesOf } from "./layer-bytes.js";

/** Bytes read and written by one job under `auto`: some 25 ms of work at 10 GB/s, or 16 ms where a GPU reads 55 GB/s over its bus. */
export const AUTO_JOB_BYTES = { cpu: 256 * 2 ** 20, cuda: 1280 * 2 ** 20 };

/** Each job's layers, as indexes into the plan's layers. */
export function groupLayers(
  plan: Plan,
  layersPerJob: "auto" | number,
  targetBytes: number = AUTO_JOB_BYTES.cpu,
): number[][] {
  const jobs: number[][] = [];
  let current: number[] = [];
  let currentBytes = 0;
  plan.layout.layers.forEach((layer, index) => {
    const bytes = layersPerJob === "auto" ? mostReadBytesOf(plan, layer) + mostHeldBytesOf(plan.layout, layer) : 0;
    const full = layersPerJob === "auto" ? currentBytes + bytes > targetBytes : current.length >= layersPerJob;
    if (full && current.length > 0) {
      jobs.push(current);
      current = [];
      currentBytes = 0;
    }
    current.push(index);
    currentBytes += bytes;
  });
  if (current.length > 0) jobs.push(current);
  return jobs;
}
