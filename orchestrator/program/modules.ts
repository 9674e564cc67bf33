// Modules, the owners of kernel tensors, such as `model.layers.7.self_attn.qkv_proj`; and what of a checkpoint each of them needs.

import type { Layout } from "../contract/plan.js";

export interface Module {
  name: string;
  /** Indexes into Layout.checkpointTensors. */
  tensors: Set<number>;
}

/** The kernel tensor's name without its last part. */
export function moduleOf(kernelTensor: string): string {
  return kernelTensor.slice(0, Math.max(0, kernelTensor.lastIndexOf(".")));
}

/** In the order of loading. */
export function modulesOf({ layers }: Layout): Module[] {
  const modules = new Map<string, Module>();
  for (const { name, parts } of layers.flatMap(({ kernelTensors }) => kernelTensors)) {
    const module = modules.get(moduleOf(name)) ?? { name: moduleOf(name), tensors: new Set<number>() };
    modules.set(module.name, module);
    for (const { tensors, scales } of parts) {
      for (const tensor of tensors) module.tensors.add(tensor);
      for (const tensor of scales?.tensors ?? []) module.tensors.add(tensor);
    }
  }
  return [...modules.values()];
}
