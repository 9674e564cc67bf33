// vLLM out of the arena against vLLM that loaded the same checkpoint itself: the same tokens, and log-probabilities without a
// difference, through v1 -> v2 -> rollback -> v2; for every kind of model, recipe and way of running a step.

import { execFile } from "node:child_process";
import { mkdir, rm, symlink } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { modelArgs, vllmArgs } from "../../orchestrator/cli/vllm-args.js";
import type { Scheme } from "../../orchestrator/contract/recipe.js";
import { compareGenerated, ENGINE_PROGRAMS, type Generated, startEngine } from "../engine/vllm.js";
import { type Case, check, type Row, type Setting } from "./case.js";
import { type BenchFleet, FIXTURES, startBenchFleet, whenEnded } from "./fleet.js";

/** How a step runs. */
const MODES = {
  eager: ["--enforce-eager"],
  graphs: ["-cc", '{"mode":0,"cudagraph_mode":"FULL"}'],
  compiled: [],
} as const;
type Mode = keyof typeof MODES;

/** Else torch.compile chooses by timing its kernels how a row is summed, and two stock engines may differ from one another. */
const EXACT = { TORCHINDUCTOR_DETERMINISTIC: "1" };

interface Model {
  name: string;
  /** Two checkpoints of one layout. */
  versions: readonly [string, string];
  modes: readonly Mode[];
}

/** On a GPU engines are compared side by side: they start on the processor, and are small. */
const AT_ONCE = 12;
const SMALL = ["--gpu-memory-utilization", "0.05", "--kv-cache-memory-bytes", String(2 ** 29)];
const STEPS = ["v1", "v2", "rollback", "v2 again"];

export const engineEqual: Case = {
  name: "engine-equal",
  says: "vLLM out of the arena against a stock vLLM, the same prompts at v1, v2, after a rollback, and at v2 again",
  columns: [
    { key: "equal", title: "prompts equal", decimals: 0 },
    { key: "prompts", title: "of", decimals: 0 },
    { key: "largest", title: "largest difference", decimals: 6 },
  ],
  async run(setting) {
    const models = await writeModels(setting);
    const work = models.flatMap((model) => setting.recipes.flatMap((scheme) => comparisonsOf(model, scheme)));
    const wanted = work.filter(({ what }) => setting.match?.test(what) ?? true);
    const rows: Row[] = [];
    const queue = [...wanted.entries()];
    const take = async () => {
      for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
        const [at, one] = next;
        const row = await compareOrSay(setting, one);
        rows[at] = row;
        setting.say(`${one.what}: ${row.checks.every(({ holds }) => holds) ? "equal" : "NOT EQUAL"}`);
      }
    };
    await Promise.all(Array.from({ length: setting.device === "cpu" ? 1 : AT_ONCE }, take));
    return rows;
  },
};

interface Comparison {
  model: Model;
  scheme: Scheme;
  mode: Mode;
  stock: "stock" | "stock-exact";
  what: string;
}

/** Under channel scales stock rounds products of latent attention that Layercast has exactly: there also against a stock that has those. */
function comparisonsOf(model: Model, scheme: Scheme): Comparison[] {
  const kinds =
    model.name === "mla" && scheme === "fp8-channel" ? (["stock", "stock-exact"] as const) : (["stock"] as const);
  return model.modes.flatMap((mode) =>
    kinds.map((stock) => ({
      model,
      scheme,
      mode,
      stock,
      what: `${model.name} ${scheme} ${mode}${stock === "stock" ? "" : ", exact products"}`,
    })),
  );
}

async function writeModels({ device, directory, python }: Setting): Promise<Model[]> {
  const shipped = (name: string): [string, string] => [
    join(FIXTURES, "checkpoints", name, "v1"),
    join(FIXTURES, "checkpoints", name, "v2"),
  ];
  const dense: Model = { name: "dense", versions: shipped("tiny-qwen3"), modes: ["eager", "compiled"] };
  // The CPU's kernels for experts and for MLA keep packed copies of weights.
  if (device === "cpu") return [dense];
  const written = async (name: string, shape: string): Promise<[string, string]> => {
    const paths: [string, string] = [join(directory, "sources", `${name}-1`), join(directory, "sources", `${name}-2`)];
    const program = join(ENGINE_PROGRAMS, "write_model.py");
    for (const [at, path] of paths.entries())
      await promisify(execFile)(python, [program, path, "--seed", String(at + 1), "--shape", shape]);
    return paths;
  };
  await mkdir(join(directory, "sources"), { recursive: true });
  return [
    // The shipped one's sizes are no multiples of 128, which blocks of scales want.
    { name: "dense", versions: await written("dense", "qwen3-tiny"), modes: ["eager", "graphs", "compiled"] },
    { name: "experts", versions: await written("experts", "qwen3-moe"), modes: ["eager", "graphs", "compiled"] },
    { name: "mla", versions: await written("mla", "deepseek"), modes: ["eager", "graphs", "compiled"] },
  ];
}

async function compareOrSay(setting: Setting, one: Comparison): Promise<Row> {
  try {
    return await compare(setting, one);
  } catch (error) {
    const found = error instanceof Error ? error.message : String(error);
    return {
      what: one.what,
      values: { equal: 0, prompts: null, largest: null },
      checks: [check("it runs", [found])],
    };
  }
}

async function compare(setting: Setting, one: Comparison): Promise<Row> {
  const { model, scheme, mode, what } = one;
  const { versions } = model;
  const directory = join(setting.directory, what.replaceAll(/[ ,]+/g, "-"));
  await mkdir(directory, { recursive: true });
  // vLLM keeps compiled code by the model's path, and two compilations may round differently: all engines have one path.
  const path = join(directory, "model");
  const stock: Generated[] = [];
  for (const [at, version] of versions.entries()) {
    await rm(path, { force: true });
    await symlink(version, path);
    stock.push(await stockOutput(setting, one, path, join(directory, `stock-${at + 1}.log`)));
  }
  const fleet = await startBenchFleet({ ...setting, directory, sources: "/" });
  try {
    const found = await arenaOutputs(setting, fleet, { versions, scheme, mode, directory, path });
    const [v1, v2] = stock;
    const compared = [v1, v2, v1, v2].map((expected, at) => {
      if (expected === undefined || found[at] === undefined) return { equal: 0, largest: Number.NaN };
      return compareGenerated(found[at], expected);
    });
    return rowOf(what, compared, v1?.tokens.length ?? 0, v1, v2);
  } finally {
    await fleet.stop();
  }
}

function rowOf(
  what: string,
  compared: { equal: number; largest: number }[],
  prompts: number,
  v1: Generated | undefined,
  v2: Generated | undefined,
): Row {
  const wrong = compared.flatMap(({ equal, largest }, at) =>
    equal === prompts && largest === 0 ? [] : [`${STEPS[at]}: ${equal} of ${prompts}, difference ${largest}`],
  );
  // Two checkpoints that say the same would prove nothing.
  const same = v1 !== undefined && v2 !== undefined && compareGenerated(v1, v2).equal === prompts;
  return {
    what,
    values: {
      equal: Math.min(...compared.map(({ equal }) => equal)),
      prompts,
      largest: Math.max(...compared.map(({ largest }) => largest)),
    },
    checks: [
      check("tokens and log-probabilities equal those of stock", wrong),
      check("v1 and v2 differ", same ? ["they do not"] : []),
    ],
  };
}

async function stockOutput(
  { python, device, tp }: Setting,
  { scheme, mode, stock }: Comparison,
  model: string,
  log: string,
) {
  const fleet = { fleet: "none", tensor_parallel_size: tp, expert_parallel: false };
  const args = [...modelArgs({ fleet, recipe: scheme, device: kindOf(device) }), ...MODES[mode], ...sizeOf(device)];
  const engine = await startEngine(stock, { python, model, log, args, env: EXACT });
  await engine.stop();
  return engine.first;
}

async function arenaOutputs(
  { python, device }: Setting,
  fleet: BenchFleet,
  {
    versions,
    scheme,
    mode,
    directory,
    path,
  }: { versions: readonly [string, string]; scheme: Scheme; mode: Mode; directory: string; path: string },
): Promise<Generated[]> {
  const commit = async (path: string, version: string) => {
    const { reload } = await fleet.reload(path, { recipe: { scheme }, weight_version: version });
    if (reload.state !== "committed") throw new Error(`${version} is ${reload.state}: ${reload.error?.message}`);
  };
  await commit(versions[0], "v1");
  const seen = await fleet.client.fleet(fleet.name);
  const runDir = join(directory, "run");
  const { args } = vllmArgs({
    fleet: seen,
    recipe: scheme,
    runDir,
    replica: 0,
    device: kindOf(device),
    liveBytes: null,
  });
  const engine = await startEngine("arena", {
    python,
    model: path,
    args: [...args, ...MODES[mode], ...sizeOf(device)],
    env: EXACT,
    log: join(directory, "arena.log"),
  });
  try {
    const outputs = [engine.first];
    await commit(versions[1], "v2");
    outputs.push(await engine.generate());
    const { reload_id } = await fleet.client.rollback(fleet.name, {});
    const rolledBack = await whenEnded(fleet.client.url, reload_id);
    if (rolledBack.state !== "committed")
      throw new Error(`the rollback is ${rolledBack.state}: ${rolledBack.error?.message}`);
    outputs.push(await engine.generate());
    await commit(versions[1], "v3");
    outputs.push(await engine.generate());
    return outputs;
  } finally {
    await engine.stop();
  }
}

const sizeOf = (device: string) => (kindOf(device) === "cuda" ? SMALL : []);

const kindOf = (device: string) => (device.startsWith("cuda") ? "cuda" : "cpu");
