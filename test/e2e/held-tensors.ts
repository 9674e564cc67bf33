// Tensors whole, their bytes included: those of a file, and those that a rank holds.

import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { expect } from "vitest";
import { parseSafetensorsHeader } from "../../orchestrator/checkpoint/safetensors-header.js";
import type { BuiltTensor } from "../checkpoint/build-safetensors.js";
import type { Cluster } from "./cluster.js";

export type Tensors = Map<string, BuiltTensor & { bytes: Uint8Array }>;

export function readTensors(path: string): Tensors {
  const file = readFileSync(path);
  const headerBytes = file.subarray(0, 8 + Number(file.readBigUInt64LE()));
  const { tensors } = parseSafetensorsHeader(headerBytes, file.byteLength);
  return new Map(
    tensors.map(({ name, dtype, shape, offset, sizeBytes }) => {
      const bytes = Uint8Array.from(file.subarray(offset, offset + sizeBytes));
      return [name, { dtype, shape, bytes }];
    }),
  );
}

export async function heldTensors(cluster: Cluster, rank: number): Promise<Tensors> {
  const file = join(cluster.directory, `held-${rank}.safetensors`);
  const { code, err } = await cluster.cli("export", "--rank", String(rank), "--out", file);
  expect([code, err]).toEqual([0, ""]);
  const tensors = readTensors(file);
  rmSync(file);
  return tensors;
}
