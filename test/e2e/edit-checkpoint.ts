// A checkpoint of a test's own: a copy of a fixture with something changed.

import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { buildSafetensors } from "../checkpoint/build-safetensors.js";
import { CHECKPOINTS, type Cluster } from "./cluster.js";
import { readTensors, type Tensors } from "./held-tensors.js";

export interface EditedCheckpoint {
  uri: string;
  directory: string;
  /** Path of the file that holds the tensor. */
  fileOf(tensor: string): string;
}

let copies = 0;

/** Copies a fixture as one file without an index, after `edit` has changed its tensors and its config. */
export function editedCheckpoint(
  cluster: Cluster,
  edit: (tensors: Tensors, config: Record<string, unknown>) => void,
  [model, version]: readonly [model: string, version: string] = ["tiny-qwen3", "v2"],
): EditedCheckpoint {
  const from = join(CHECKPOINTS, model, version);
  const tensors: Tensors = new Map();
  for (const name of readdirSync(from).filter((file) => file.endsWith(".safetensors"))) {
    for (const [tensor, read] of readTensors(join(from, name))) tensors.set(tensor, read);
  }
  const config = JSON.parse(readFileSync(join(from, "config.json"), "utf8")) as Record<string, unknown>;
  edit(tensors, config);
  return newCheckpoint(cluster, tensors, config);
}

/** One of the test's own making. */
export function newCheckpoint(cluster: Cluster, tensors: Tensors, config: object): EditedCheckpoint {
  const directory = newDirectory(cluster);
  writeFileSync(join(directory, "config.json"), JSON.stringify(config));
  const path = join(directory, "model.safetensors");
  writeFileSync(path, buildSafetensors(Object.fromEntries(tensors)));
  return { uri: pathToFileURL(directory).href, directory, fileOf: () => path };
}

/** Copies a fixture as it is. */
export function copiedCheckpoint(cluster: Cluster, version: string): EditedCheckpoint {
  const directory = newDirectory(cluster);
  rmSync(directory, { recursive: true });
  cpSync(join(CHECKPOINTS, "tiny-qwen3", version), directory, { recursive: true });
  const { weight_map } = JSON.parse(readFileSync(join(directory, "model.safetensors.index.json"), "utf8")) as {
    weight_map: Record<string, string>;
  };
  return {
    uri: pathToFileURL(directory).href,
    directory,
    fileOf: (tensor) => join(directory, weight_map[tensor] ?? ""),
  };
}

function newDirectory(cluster: Cluster): string {
  copies += 1;
  const directory = join(cluster.sources, `copy-${copies}`);
  mkdirSync(directory);
  return directory;
}
