import { execFileSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { type EngineFleet, shellWord, vllmArgs } from "../../orchestrator/cli/vllm-args.js";
import { FLEET } from "./views.js";

const GPU: EngineFleet = {
  fleet: FLEET,
  recipe: "fp8-channel",
  runDir: "/run/lc",
  replica: 0,
  device: "cuda",
  liveBytes: 2 ** 33,
};

const flagOf = (fleet: EngineFleet, flag: string) => {
  const { args } = vllmArgs(fleet);
  const at = args.indexOf(flag);
  return at === -1 ? null : args[at + 1];
};

describe("vllmArgs", () => {
  it("names the loader, the fleet's directory and its tensor-parallel size", () => {
    expect(flagOf(GPU, "--load-format")).toBe("layercast");
    expect(JSON.parse(flagOf(GPU, "--model-loader-extra-config") ?? "")).toEqual({
      run_dir: "/run/lc",
      fleet: "default",
    });
    expect(flagOf(GPU, "--tensor-parallel-size")).toBe("2");
  });

  it("names a replica other than the first", () => {
    const extra = flagOf({ ...GPU, replica: 3 }, "--model-loader-extra-config");
    expect(JSON.parse(extra ?? "")).toEqual({ run_dir: "/run/lc", fleet: "default", replica: 3 });
  });

  it.each([
    ["fp8-tensor", "fp8_per_tensor"],
    ["fp8-channel", "fp8_per_channel"],
    ["fp8-block", "fp8_per_block"],
  ] as const)("makes vLLM expect %s for linear layers and experts", (recipe, scheme) => {
    expect(flagOf({ ...GPU, recipe }, "--quantization")).toBe("online");
    const config = JSON.parse(flagOf({ ...GPU, recipe }, "--quantization-config") ?? "");
    expect(config).toMatchObject({ linear: scheme, moe: scheme });
  });

  it.each([
    ["model.layers.0.mlp.gate", true],
    ["model.layers.0.block_sparse_moe.gate", true],
    ["model.layers.0.mlp.shared_expert_gate", true],
    ["model.layers.0.mlp.gate_up_proj", false],
    ["model.layers.0.mlp.gate_proj", false],
    ["model.layers.0.mlp.experts", false],
  ])("says of %s whether it stays as it is: %s", (layer, isIgnored) => {
    const { ignore } = JSON.parse(flagOf(GPU, "--quantization-config") ?? "") as { ignore: string[] };
    // vLLM matches what follows `re:` from the name's beginning.
    const matches = ignore.some((pattern) => new RegExp(`^(?:${pattern.slice("re:".length)})`).test(layer));
    expect(matches).toBe(isIgnored);
  });

  it("asks for no quantization where weights are plain, or stored as the config says", () => {
    for (const recipe of ["none", "as-stored"] as const)
      expect(vllmArgs({ ...GPU, recipe }).args).not.toContain("--quantization");
  });

  it("pins kernels that keep the layout on a GPU, and none on the CPU, which has no choice", () => {
    expect(vllmArgs(GPU).args.join(" ")).toContain("--linear-backend cutlass --moe-backend triton");
    expect(vllmArgs({ ...GPU, device: "cpu" }).args.join(" ")).not.toContain("backend");
  });

  it("asks for expert parallelism where the fleet has it", () => {
    expect(vllmArgs(GPU).args).not.toContain("--enable-expert-parallel");
    const fleet = { ...FLEET, expert_parallel: true };
    expect(vllmArgs({ ...GPU, fleet }).args).toContain("--enable-expert-parallel");
  });

  it("says how much of a GPU is held", () => {
    expect(vllmArgs(GPU).notes.join(" ")).toContain("8.0 GiB");
    expect(vllmArgs({ ...GPU, device: "cpu" }).notes).toEqual([]);
  });
});

describe("shellWord", () => {
  it("comes back as it was from a shell", () => {
    const words = ["--flag", '{"ignore":["re:.*\\\\.gate$"],"it\'s":"*"}', "", "a b", "$HOME", "`x`"];
    const printed = execFileSync("sh", ["-c", `printf '%s\\n' ${words.map(shellWord).join(" ")}`], {
      encoding: "utf8",
    });
    expect(printed.split("\n").slice(0, -1)).toEqual(words);
  });
});
