import { describe, expect, it } from "vitest";
import type { KernelGeometry } from "../../../orchestrator/program/rank-geometry.js";
import { numbered } from "../../../orchestrator/program/rank-matrices.js";
import { type Cells, newCells, noteHeld } from "../../../worker/intake/cells.js";
import { shareRoom } from "../../../worker/push/buffer-room.js";

const PAGE_BYTES = 4096;

/** A rank with one matrix of each phase: four rows of a page each, and one scalar. */
function cellsOf(...phases: ("layer" | "finalize")[]): Cells {
  const kernels = phases.map((phase, tensor) => {
    const [rows, cols] = phase === "layer" ? [4, PAGE_BYTES / 4] : [1, 1];
    const window = {
      kind: "rows",
      tensors: [tensor],
      firsts: [0],
      shift: 0,
      rows,
      cols,
      rowStride: cols,
      colStride: 1,
      toRow: 0,
      scaledBy: null,
    };
    return { layer: 0, kernel: { phase }, module: `module ${tensor}`, count: 1, rows, windows: [window] };
  });
  const shapes = phases.map((phase) => (phase === "layer" ? [4, PAGE_BYTES / 4] : []));
  return newCells(
    numbered(kernels as unknown as KernelGeometry[], [], phases.length),
    phases.map(() => "F32"),
    shapes,
  );
}

const row = (from: number) => ({ index: 0, arrival: { window: 0, from, to: from + 1, offset: 0 } });
const scalar = { index: 1, arrival: { window: 0, from: 0, to: 1, offset: 0 } };

describe("room in the buffers", () => {
  it("is max_buffer_bytes less what tensors of layers hold: pages of attention scales do not count", () => {
    const cells = cellsOf("layer", "finalize");
    noteHeld(cells, 1, 0, scalar.arrival);
    noteHeld(cells, 0, 0, row(0).arrival);
    const measured = { heldBytes: 2 * PAGE_BYTES, limitBytes: 2 * PAGE_BYTES };
    expect(shareRoom(cells, [row(1), row(2)], measured)).toEqual({ fitting: [row(1)], waiting: [row(2)] });
  });

  it("is there for attention scales even when nothing is left", () => {
    const cells = cellsOf("layer", "finalize");
    const full = { heldBytes: PAGE_BYTES, limitBytes: PAGE_BYTES };
    expect(shareRoom(cells, [row(1), scalar], full)).toEqual({ fitting: [scalar], waiting: [row(1)] });
  });
});
