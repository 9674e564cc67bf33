// What `vllm serve` must be told so that it expects exactly the kernel tensors that a fleet's ranks hold. Pure.

import type { Recipe, Scheme } from "../contract/recipe.js";
import type { FleetView } from "../contract/reload.js";

export interface EngineArgs {
  args: string[];
  /** What the flags cannot say. */
  notes: string[];
}

export interface EngineFleet {
  fleet: Pick<FleetView, "fleet" | "tensor_parallel_size" | "expert_parallel">;
  recipe: Recipe;
  /** Of `layercast up`, on the ranks' host. */
  runDir: string;
  replica: number;
  device: "cpu" | "cuda";
  /** Held live by the rank that holds most; null: not known any more. */
  liveBytes: number | null;
}

/** vLLM's names of its online schemes, whose arithmetic the native core follows. */
const ONLINE: Record<Exclude<Scheme, "none">, string> = {
  "fp8-tensor": "fp8_per_tensor",
  "fp8-channel": "fp8_per_channel",
  "fp8-block": "fp8_per_block",
};

/** Linear layers that Layercast leaves as they are and vLLM would quantize: routers, and the gate of shared experts. */
const UNQUANTIZED = ["re:.*\\.gate$", "re:.*\\.shared_expert_gate$"];

export function vllmArgs({ runDir, replica, liveBytes, ...model }: EngineFleet): EngineArgs {
  const loader = { run_dir: runDir, fleet: model.fleet.fleet, ...(replica === 0 ? {} : { replica }) };
  const args = [
    "--load-format",
    "layercast",
    "--model-loader-extra-config",
    JSON.stringify(loader),
    ...modelArgs(model),
  ];
  return { args, notes: model.device === "cuda" ? memoryNotes(liveBytes) : [] };
}

/** All but where the weights are: what a vLLM that loads them itself is told to compute the same. */
export function modelArgs({ fleet, recipe, device }: Pick<EngineFleet, "fleet" | "recipe" | "device">): string[] {
  const args = ["--tensor-parallel-size", String(fleet.tensor_parallel_size)];
  if (fleet.expert_parallel) args.push("--enable-expert-parallel");
  args.push(...quantizationArgs(recipe));
  if (device === "cuda") args.push(...backendArgs(recipe));
  return args;
}

function quantizationArgs(recipe: Recipe): string[] {
  // As stored: the model's own config.json says it.
  if (recipe === "none" || recipe === "as-stored") return [];
  const scheme = ONLINE[recipe];
  const config = { linear: scheme, moe: scheme, ignore: UNQUANTIZED };
  return ["--quantization", "online", "--quantization-config", JSON.stringify(config)];
}

/** Others pack weights again, or pad them: then what computes is a copy. */
function backendArgs(recipe: Recipe): string[] {
  const moe = ["--moe-backend", "triton"];
  return recipe === "none" ? moe : ["--linear-backend", "cutlass", ...moe];
}

function memoryNotes(liveBytes: number | null): string[] {
  const held =
    liveBytes === null ? "its weights twice" : `${gib(liveBytes)} GiB of live weights and as much of staging`;
  return [
    `Layercast holds ${held} on each GPU (once with --staging host); vLLM's own weights are nearly nothing.`,
    "Give vLLM what is left: --gpu-memory-utilization below that share of the GPU, or --kv-cache-memory-bytes.",
  ];
}

const gib = (bytes: number) => (bytes / 2 ** 30).toFixed(1);

/** As a POSIX shell reads it back. */
export function shellWord(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
