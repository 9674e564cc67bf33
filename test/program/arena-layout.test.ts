import { describe, expect, it } from "vitest";
import { parseSafetensorsHeader } from "../../orchestrator/checkpoint/safetensors-header.js";
import { byteCount } from "../../orchestrator/contract/dtype.js";
import type { Layout } from "../../orchestrator/contract/plan.js";
import type { Scheme } from "../../orchestrator/contract/recipe.js";
import { planReload } from "../../orchestrator/planner/plan-reload.js";
import { exportLayout, layoutArena } from "../../orchestrator/program/arena-layout.js";
import { LLAMA, shapesOf, synthesize } from "../planner/synthetic-checkpoint.js";

function layoutOf(scheme: Scheme): Layout {
  const { table, config } = synthesize(LLAMA, shapesOf(LLAMA), { fill: false });
  return planReload({ table, config, tensorParallelSize: 2, expertParallel: false, scheme, ignore: [], dtype: "auto" })
    .layout;
}

const SCHEMES: Scheme[] = ["none", "fp8-tensor", "fp8-channel", "fp8-block"];

describe("layoutArena", () => {
  it.each(SCHEMES)(
    "puts every kernel tensor of %s, scales too, at a multiple of 256 in the order of loading",
    (scheme) => {
      const layout = layoutOf(scheme);
      const { tensors, dataBytes } = layoutArena(layout, 0);
      const names = layout.layers.flatMap(({ kernelTensors }) =>
        kernelTensors.flatMap(({ name, scale }) => (scale === null ? [name] : [name, scale.name])),
      );
      expect(tensors.map(({ name }) => name)).toEqual(names);
      let end = 0;
      for (const { offset, bytes, dtype, shape } of tensors) {
        expect(offset).toBe(Math.ceil(end / 256) * 256);
        expect(bytes).toBe(byteCount(dtype, shape));
        end = offset + bytes;
      }
      expect(dataBytes).toBe(Math.ceil(end / 256) * 256);
    },
  );

  it.each(SCHEMES)(
    "describes the arena of %s by a header that a safetensors reader takes, pads as tensors of bytes",
    (scheme) => {
      const arena = layoutArena(layoutOf(scheme), 0);
      const { headerBytes, dataBytes } = arena;
      expect(headerBytes.byteLength % 4096).toBe(0);
      const parsed = parseSafetensorsHeader(headerBytes, headerBytes.byteLength + dataBytes);
      expect(parsed.dataOffset).toBe(headerBytes.byteLength);
      expect([...parsed.metadata]).toEqual([["format", "pt"]]);
      const pads = parsed.tensors.filter(({ name }) => name.startsWith("__pad__."));
      expect(pads.map(({ name }) => name)).toEqual(pads.map((_, index) => `__pad__.${index}`));
      for (const { dtype, sizeBytes } of pads) {
        expect(dtype).toBe("U8");
        expect(sizeBytes).toBeLessThan(256);
      }
      const others = parsed.tensors.filter(({ name }) => !name.startsWith("__pad__."));
      expect(
        others.map(({ name, dtype, shape, offset, sizeBytes }) => ({
          name,
          dtype,
          shape,
          offset: offset - headerBytes.byteLength,
          bytes: sizeBytes,
        })),
      ).toEqual(arena.tensors);
    },
  );

  it("gives a tensor without elements a place between its neighbours", () => {
    const layout = layoutOf("none");
    const norm = layout.layers.at(-2)?.kernelTensors[0];
    if (norm === undefined) throw new Error("no norm");
    norm.shape = [0];
    const { headerBytes, dataBytes, tensors } = layoutArena(layout, 0);
    const parsed = parseSafetensorsHeader(headerBytes, headerBytes.byteLength + dataBytes);
    expect(parsed.tensors.find(({ name }) => name === norm.name)?.sizeBytes).toBe(0);
    expect(exportLayout({ headerBytes, dataBytes, tensors }, {}).spans.every(({ bytes }) => bytes > 0)).toBe(true);
  });
});

describe("exportLayout", () => {
  it.each(SCHEMES)(
    "packs the tensors of %s without pads, each aligned to its dtype, with the weight version",
    (scheme) => {
      const arena = layoutArena(layoutOf(scheme), 0);
      const { headerBytes, spans } = exportLayout(arena, { weight_version: 'step "7"' });
      const bytes = spans.reduce((sum, span) => sum + span.bytes, 0);
      const parsed = parseSafetensorsHeader(headerBytes, headerBytes.byteLength + bytes);
      expect(Object.fromEntries(parsed.metadata)).toEqual({ format: "pt", weight_version: 'step "7"' });
      expect(headerBytes.byteLength % 8).toBe(0);
      expect(parsed.tensors).toHaveLength(arena.tensors.length);
      parsed.tensors.forEach(({ name, dtype, shape, offset, sizeBytes }, index) => {
        const held = arena.tensors.find((tensor) => tensor.name === name);
        expect([dtype, shape]).toEqual([held?.dtype, held?.shape]);
        expect(spans[index]).toEqual({ offset: held?.offset, bytes: sizeBytes });
        expect(offset % byteCount(held?.dtype ?? "F32", [])).toBe(0);
      });
    },
  );
});
