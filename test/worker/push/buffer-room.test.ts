import { describe, expect, it } from "vitest";
import type { Matrix, RankMatrices } from "../../../orchestrator/planner/matrix-needs.js";
import { shareRoom } from "../../../worker/push/buffer-room.js";
import { type Cells, newCells, noteHeld } from "../../../worker/push/cells.js";

const PAGE_BYTES = 4096;

/** A rank with one matrix of each phase: four rows of a page each, and one scalar. */
function cellsOf(...phases: Matrix["phase"][]): Cells {
  const matrices = phases.map((phase, tensor) => {
    const [rows, cols] = phase === "layer" ? [4, PAGE_BYTES / 4] : [1, 1];
    const need = {
      kind: "rows",
      tensor,
      first: 0,
      rows,
      cols,
      rowStride: cols,
      colStride: 1,
      toRow: 0,
      scaledBy: null,
    };
    return { layer: 0, phase, module: `module ${tensor}`, rows, needs: [need] };
  });
  const shapes = phases.map((phase) => (phase === "layer" ? [4, PAGE_BYTES / 4] : []));
  return newCells(
    { matrices, byTensor: new Map() } as unknown as RankMatrices,
    phases.map(() => "F32"),
    shapes,
  );
}

const row = (from: number) => ({ index: 0, arrival: { need: 0, from, to: from + 1, offset: 0 } });
const scalar = { index: 1, arrival: { need: 0, from: 0, to: 1, offset: 0 } };

describe("room in the buffers", () => {
  it("is max_buffer_bytes less what tensors of layers hold: pages of attention scales do not count", () => {
    const cells = cellsOf("layer", "finalize");
    noteHeld(cells, 1, scalar.arrival);
    noteHeld(cells, 0, row(0).arrival);
    const measured = { heldBytes: 2 * PAGE_BYTES, limitBytes: 2 * PAGE_BYTES };
    expect(shareRoom(cells, [row(1), row(2)], measured)).toEqual({ fitting: [row(1)], waiting: [row(2)] });
  });

  it("is there for attention scales even when nothing is left", () => {
    const cells = cellsOf("layer", "finalize");
    const full = { heldBytes: PAGE_BYTES, limitBytes: PAGE_BYTES };
    expect(shareRoom(cells, [row(1), scalar], full)).toEqual({ fitting: [scalar], waiting: [row(1)] });
  });
});
