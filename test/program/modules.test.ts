// Modules are the owners of kernel tensors: each of these has one, and each checkpoint tensor is needed for some.

import { readdirSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { readCheckpointTable } from "../../orchestrator/checkpoint/checkpoint-table.js";
import type { Layout } from "../../orchestrator/contract/plan.js";
import { planReload } from "../../orchestrator/planner/plan-reload.js";
import { moduleOf, modulesOf } from "../../orchestrator/program/modules.js";
import { planned } from "../planner/changed-llama.js";

const CHECKPOINTS = path.resolve(import.meta.dirname, "../fixtures/checkpoints");

async function layoutOf(name: string): Promise<Layout> {
  const directory = path.join(CHECKPOINTS, name, "v1");
  const { table, config } = await readCheckpointTable(directory, { allowedRoots: [CHECKPOINTS] });
  const hasCodes = [...table.tensors.values()].some(({ dtype }) => dtype === "F8_E4M3");
  const { layout } = planReload({
    ...{ table, config, tensorParallelSize: 2, expertParallel: false },
    ...{ scheme: "none", ignore: [], dtype: hasCodes ? "bfloat16" : "auto" },
  });
  return layout;
}

const namesIn = ({ checkpointTensors }: Layout, tensors: Iterable<number>) =>
  [...tensors].map((tensor) => checkpointTensors[tensor]?.name);

describe("moduleOf", () => {
  it("takes the last part of a name away", () => {
    expect(moduleOf("model.layers.7.self_attn.qkv_proj.weight")).toBe("model.layers.7.self_attn.qkv_proj");
    expect(moduleOf("model.layers.7.self_attn.qkv_proj.bias")).toBe("model.layers.7.self_attn.qkv_proj");
    expect(moduleOf("weight")).toBe("");
  });
});

describe.each(readdirSync(CHECKPOINTS))("the modules of %s", (name) => {
  it("need every checkpoint tensor of the layout, and come in the order in which tensors are first needed", async () => {
    const layout = await layoutOf(name);
    const needed = new Set(modulesOf(layout).flatMap(({ tensors }) => [...tensors].sort((a, b) => a - b)));
    expect([...needed]).toEqual([...layout.checkpointTensors.keys()]);
  });

  it("are one for each owner of kernel tensors, none of them in two layers", async () => {
    const layout = await layoutOf(name);
    const owners = layout.layers.map(({ kernelTensors }) => [
      ...new Set(kernelTensors.map((one) => moduleOf(one.name))),
    ]);
    expect(modulesOf(layout).map((module) => module.name)).toEqual(owners.flat());
    expect(new Set(owners.flat()).size).toBe(owners.flat().length);
  });
});

describe("a module", () => {
  it("needs what is fused into its kernel tensors", () => {
    const { layout } = planned({});
    const qkv = modulesOf(layout).find(({ name }) => name === "model.layers.1.self_attn.qkv_proj");
    const prefix = "model.layers.1.self_attn.";
    expect(namesIn(layout, qkv?.tensors ?? [])).toEqual([
      `${prefix}q_proj.weight`,
      `${prefix}k_proj.weight`,
      `${prefix}v_proj.weight`,
    ]);
  });

  it("needs the scales of its codes", async () => {
    const layout = await layoutOf("tiny-qwen2-fp8");
    const down = modulesOf(layout).find(({ name }) => name === "model.layers.0.mlp.down_proj");
    const names = namesIn(layout, down?.tensors ?? []);
    expect(names).toEqual(["model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.down_proj.weight_scale"]);
  });

  it("may need nothing: what it holds is constant or derived", () => {
    const { layout } = planned({});
    const attention = modulesOf(layout).find(({ name }) => name === "model.layers.0.self_attn.attn");
    expect(attention?.tensors.size).toBe(0);
  });
});
