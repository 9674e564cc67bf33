// Experts made up with zeros in plans of values, which the interpreter of programs can run.

import type { KernelTensor, Plan } from "../../orchestrator/contract/plan.js";
import { cutPart } from "../../orchestrator/program/cut-part.js";

/** Makes up each part of each expert to a multiple of so many rows and columns, as a scheme might ask for. */
export function makeUpExperts({ layout }: Plan, padTo: number): void {
  for (const kernel of layout.layers.flatMap(({ kernelTensors }) => kernelTensors))
    if (kernel.experts !== null) makeUp(kernel, padTo, layout.tensorParallelSize);
}

function makeUp(kernel: KernelTensor, padTo: number, ranks: number): void {
  const madeUp = (size: number) => Math.ceil(size / padTo) * padTo;
  let rows = 0;
  for (const part of kernel.parts) {
    const cut = cutPart(part, 0, ranks);
    part.padTo = padTo;
    rows += madeUp(cut.rows);
    kernel.cols = madeUp(cut.cols);
  }
  kernel.rows = rows;
  kernel.shape = [rows, kernel.cols];
}
