import { describe, expect, it } from "vitest";
import { SLICE_FIELDS } from "../../native/native.js";
import type { Plan } from "../../orchestrator/contract/plan.js";
import { planReload } from "../../orchestrator/planner/plan-reload.js";
import { layoutArena } from "../../orchestrator/program/arena-layout.js";
import type { ResolvedProgram } from "../../orchestrator/program/make-program.js";
import { layerGeometry, placesOf } from "../../orchestrator/program/rank-geometry.js";
import { describeElement } from "../../orchestrator/program/resolve.js";
import { expectLayercastError } from "../checkpoint/expect-error.js";
import { createResolver } from "../planner/resolver.js";
import { LLAMA, shapesOf, synthesize } from "../planner/synthetic-checkpoint.js";
import { rowsOf } from "./interpret-program.js";

const QWEN2 = { ...LLAMA, architectures: ["Qwen2ForCausalLM"], model_type: "qwen2" };
const shapes = { ...shapesOf(QWEN2), "model.layers.0.self_attn.kv_scale": [] };

function planOf(fileCount: number, dtype: "BF16" | "F32" = "BF16"): Plan {
  const { table, config } = synthesize(QWEN2, shapes, { fileCount, dtype, fill: false });
  return planReload({
    table,
    config,
    tensorParallelSize: 4,
    expertParallel: false,
    scheme: "fp8-channel",
    ignore: [],
    dtype: "bfloat16",
  });
}

const plan = planOf(3);
const arena = layoutArena(plan.layout, 0);
const request = { layers: [1], rank: 3, phase: "layer", allowNonFinite: false } as const;

/** Where the program's slices come from, seen as a reader of the checkpoint would. */
function elementAt({ source, layout }: Plan, { program }: ResolvedProgram, slice: number, row: number, col: number) {
  const found = rowsOf(SLICE_FIELDS, program.slices)[slice];
  if (found === undefined) throw new Error("no such slice");
  const path = program.files[found.file]?.path;
  const at = found.offset + row * found.rowStride + col * 2;
  const tensor = layout.checkpointTensors.findIndex(({ name }, index) => {
    const bytes = (shapes as Record<string, number[]>)[name]?.reduce((product, size) => product * size, 2) ?? 0;
    const start = source.offset[index] ?? 0;
    return source.files[source.file[index] ?? -1]?.path === path && start <= at && at < start + bytes;
  });
  return { name: layout.checkpointTensors[tensor]?.name, element: (at - (source.offset[tensor] ?? 0)) / 2 };
}

describe("createResolver", () => {
  it("only puts other files and offsets in when the source changes", () => {
    const resolve = createResolver(plan.layout, arena);
    const one = resolve(plan.source, request);
    const other = planOf(1);
    expect(other.layoutDigest).toBe(plan.layoutDigest);
    const rebound = resolve(other.source, request);
    expect(rebound).toEqual(createResolver(other.layout, arena)(other.source, request));
    expect(rebound.program.slices).not.toEqual(one.program.slices);
    expect(resolve(plan.source, request)).toEqual(one);
  });

  it("names only the files that the layers are in", () => {
    const { program } = createResolver(plan.layout, arena)(plan.source, { ...request, layers: [0] });
    expect(program.files).toHaveLength(1);
    const { path, sizeBytes, mtimeNs, inode } = plan.source.files[plan.source.file[0] ?? -1] ?? {};
    expect(program.files[0]).toEqual({ path, sizeBytes, mtimeNs, inode });
  });

  it("splits each layer into what is loaded and what waits for finalize, and lists what each writes", () => {
    const spansOf = (layer: number, phase: "layer" | "finalize") => {
      const { kernels, derived } = layerGeometry(plan.layout, placesOf(arena), layer, { rank: 3, phase });
      return [...kernels, ...derived].flatMap((written) => written.spans);
    };
    const layers = [...plan.layout.layers.keys()];
    const spans = layers.flatMap((layer) => [...spansOf(layer, "layer"), ...spansOf(layer, "finalize")]);
    const expected = arena.tensors.map(({ offset, bytes }) => ({ offset, bytes }));
    expect(spans.toSorted((a, b) => a.offset - b.offset)).toEqual(expected);
    expect(spansOf(1, "finalize").map(({ bytes }) => bytes)).toEqual([4, 4, 4, 4]);
    const finalize = createResolver(plan.layout, arena)(plan.source, { ...request, phase: "finalize" });
    expect([0, 1].map((slice) => describeElement(plan.layout, finalize, { slice, row: 0, col: 0 }).tensor)).toEqual([
      "model.layers.0.self_attn.kv_scale",
      "model.layers.0.self_attn.kv_scale",
    ]);
  });

  it("refuses a layer, a rank or a source that is not of its layout", () => {
    const resolve = createResolver(plan.layout, arena);
    for (const wrong of [{ layers: [99] }, { rank: 4 }, { rank: -1 }])
      expectLayercastError(() => resolve(plan.source, { ...request, ...wrong }), "internal", /has no layer/);
    const empty = { files: [], file: [], offset: [], dtype: [] };
    expectLayercastError(() => resolve(empty, request), "internal", /of another layout/);
  });
});

describe("describeElement", () => {
  it("names the checkpoint tensor and the index into all of it, wherever the slice begins", () => {
    for (const rank of [0, 1, 2, 3]) {
      const resolved = createResolver(plan.layout, arena)(plan.source, { ...request, rank, layers: [0, 1, 2, 3, 4] });
      rowsOf(SLICE_FIELDS, resolved.program.slices).forEach(({ rows, cols }, slice) => {
        const element = { slice, row: rows - 1, col: cols - 1 };
        const { tensor, index } = describeElement(plan.layout, resolved, element);
        const expected = elementAt(plan, resolved, slice, element.row, element.col);
        const shape = (shapes as Record<string, number[]>)[tensor] ?? [];
        expect(tensor).toBe(expected.name);
        expect(index).toHaveLength(shape.length);
        expect(index.reduce((sum, at, axis) => sum * (shape[axis] ?? 0) + at, 0)).toBe(expected.element);
      });
    }
  });

  it("gives a scalar no index", () => {
    const resolved = createResolver(plan.layout, arena)(plan.source, { ...request, phase: "finalize" });
    expect(describeElement(plan.layout, resolved, { slice: 1, row: 0, col: 0 })).toEqual({
      tensor: "model.layers.0.self_attn.kv_scale",
      index: [],
    });
    expectLayercastError(
      () => describeElement(plan.layout, resolved, { slice: 2, row: 0, col: 0 }),
      "internal",
      /no slice 2/,
    );
  });
});
