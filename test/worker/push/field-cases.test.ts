// What went wrong with layerwise loading elsewhere, as laws of a rank's intake: a module is whole when its rows are there, not when
// enough has been counted. The core is a stand-in that keeps a list of what it was told to do.

import path from "node:path";
import { describe, expect, it } from "vitest";
import type { NativeCore } from "../../../native/native.js";
import { readCheckpointTable } from "../../../orchestrator/checkpoint/checkpoint-table.js";
import type { Layout, Plan } from "../../../orchestrator/contract/plan.js";
import type { Bucket, BucketPiece } from "../../../orchestrator/contract/push.js";
import type { Recipe } from "../../../orchestrator/contract/recipe.js";
import type { ReloadPlan } from "../../../orchestrator/fleet/plan-store.js";
import { planReload } from "../../../orchestrator/planner/plan-reload.js";
import { layoutArena } from "../../../orchestrator/program/arena-layout.js";
import { OP } from "../../../orchestrator/program/program-tables.js";
import { matricesOfRank } from "../../../orchestrator/program/rank-matrices.js";
import { isDone, isTouched, matrixAt, newCells } from "../../../worker/intake/cells.js";
import { type Intake, openIntake } from "../../../worker/intake/intake.js";
import { arrivalsOf, writableRows } from "../../../worker/push/arrivals.js";
import { type BucketDeps, takeBucket } from "../../../worker/push/take-bucket.js";

const CHECKPOINTS = path.resolve(import.meta.dirname, "../../fixtures/checkpoints");

interface RankCase {
  model: string;
  scheme?: Recipe;
  ranks?: number;
  rank?: number;
  expertParallel?: boolean;
}

async function planOf({ model, scheme = "fp8-tensor", ranks = 2, expertParallel = false }: RankCase): Promise<Plan> {
  const directory = path.join(CHECKPOINTS, model, "v1");
  const { table, config } = await readCheckpointTable(directory, { allowedRoots: [CHECKPOINTS] });
  const request = { table, config, tensorParallelSize: ranks, expertParallel, scheme, dtype: "auto" as const };
  return planReload({ ...request, ignore: [] });
}

/** Whole tensors, or rows [from, to) of them. */
type Sent = string | [name: string, from: number, to: number];

/** A rank that takes buckets, one for each call. */
interface TakingRank {
  intake: Intake;
  take(...sent: Sent[]): Promise<void>;
  /** Kernel tensors of which all that this rank has is written. */
  whole(): string[];
  /** Kernel tensors of which something has come. */
  touched(): string[];
  /** Bytes in buffers, by module. */
  held(): Record<string, number>;
}

async function takingRank(of: RankCase): Promise<TakingRank> {
  const { layout, layoutDigest, mappingDigest, source, sourceDigest } = await planOf(of);
  const { rank = 0 } = of;
  const plan: ReloadPlan = {
    ...{
      layout,
      layoutDigest,
      mappingDigest,
      source,
      sourceDigest,
      layerJobs: [],
      allowNonFinite: false,
      stagingPlace: "auto",
    },
    retry: { attempts: 1, backoffMs: 1 },
    warnings: [],
    ...{ kind: "push", base: null, limits: { maxBufferBytes: null, warnBufferBytes: 0 }, retainExport: false },
  };
  const matrices = matricesOfRank(layout, layoutArena(layout, rank), rank);
  const intake = openIntake({ reload: "push", epoch: 1, content: "push" }, plan, matrices);
  const { cells } = intake;
  const whenAll = (is: (index: number) => boolean) => {
    const names = [...cells.done.keys()].map(
      (index) => [matrixAt(cells, index).geometry.kernel.name, is(index)] as const,
    );
    const not = new Set(names.filter(([, isSo]) => !isSo).map(([name]) => name));
    return [...new Set(names.map(([name]) => name))].filter((name) => !not.has(name));
  };
  let sequence = 0;
  return {
    intake,
    take: (...sent) => takeBucket(intake, bucketOf(layout, sequence++, sent), standIn()),
    whole: () => whenAll((index) => isDone(cells, index)),
    touched: () => whenAll((index) => isTouched(cells, index)),
    held: () => Object.fromEntries(cells.heldByModule),
  };
}

function bucketOf({ checkpointTensors }: Layout, sequence: number, sent: readonly Sent[]): Bucket {
  const pieces = sent.map((one): BucketPiece => {
    const [name, from, to] = typeof one === "string" ? [one] : one;
    const tensor = checkpointTensors.findIndex((known) => known.name === name);
    const rows = checkpointTensors[tensor]?.shape[0] ?? 1;
    if (tensor === -1) throw new Error(`there is no tensor ${name}`);
    return { tensor, firstRow: from ?? 0, rows: (to ?? rows) - (from ?? 0), offset: 0 };
  });
  const file = { path: "bucket", sizeBytes: 0, mtimeNs: "0", inode: "0", headerDigest: "" };
  return { sequence, number: sequence, delivery: 0, file, isReadable: true, pieces, bytes: 0 };
}

/** Does nothing, and says that it has. */
function standIn(): BucketDeps {
  const core = {
    openBuffers: () => ({}),
    describeBuffers: () => ({ file: { path: "buffers", sizeBytes: 0, mtimeNs: "0", inode: "0" }, heldBytes: 0 }),
    fillBuffers: async () => ({}),
    freeBuffers: async () => {},
  };
  return {
    core: core as unknown as NativeCore,
    work: { run: (_what: string, _ms: number, call: (cancel: never) => unknown) => call(undefined as never) },
    run: async () => ({ digest: "0000000000000000" }),
    report: { layerWritten() {}, layerComplete() {}, cut() {} },
  } as unknown as BucketDeps;
}

const elements = ({ layout }: Plan, name: string) =>
  layout.checkpointTensors.find((known) => known.name === name)?.shape.reduce((product, size) => product * size, 1) ??
  0;

describe("a tensor that comes twice", () => {
  const prefix = "model.layers.0.self_attn";
  const [q, k, v] = ["q_proj", "k_proj", "v_proj"].map((name) => `${prefix}.${name}.weight`) as [
    string,
    string,
    string,
  ];

  it("does not complete its module early, though as many elements have come as the module has", async () => {
    const plan = await planOf({ model: "tiny-qwen3" });
    expect(elements(plan, q)).toBeGreaterThanOrEqual(elements(plan, k) + elements(plan, v)); // so counting would do
    const { take, whole, held } = await takingRank({ model: "tiny-qwen3" });
    await take(q);
    const once = held();
    await take(q);
    expect(held()).toEqual(once);
    await take(k);
    expect(whole()).not.toContain(`${prefix}.qkv_proj.weight`);
    await take(v);
    expect(whole()).toContain(`${prefix}.qkv_proj.weight`);
    expect(held()).toEqual({});
  });

  it("and once its module is written, is neither written nor kept again", async () => {
    const { take, held, intake } = await takingRank({ model: "tiny-qwen3" });
    await take(q, k, v);
    const bucket = bucketOf(intake.plan.layout, 9, [q]);
    expect(arrivalsOf(intake.cells, bucket.pieces).size).toBe(0);
    await take(q);
    expect(held()).toEqual({});
  });

  it("in rows that overlap does not stand for the rows that never came", async () => {
    const { take, whole, intake } = await takingRank({ model: "tiny-qwen3" });
    const { layout } = intake.plan;
    const ofRank = (layout.checkpointTensors.find(({ name }) => name === q)?.shape[0] ?? 0) / 2;
    await take(k, v, [q, ofRank - 4, ofRank]);
    expect(whole()).not.toContain(`${prefix}.qkv_proj.weight`);
    for (const [from, to] of [
      [0, 20],
      [8, ofRank - 6],
      [12, ofRank - 5],
    ] as const)
      await take([q, from, to]);
    expect(whole()).not.toContain(`${prefix}.qkv_proj.weight`);
    await take([q, ofRank - 6, ofRank]);
    expect(whole()).toContain(`${prefix}.qkv_proj.weight`);
  });
});

describe("experts", () => {
  const layer = "model.layers.1.mlp";
  const expert = (index: number) =>
    ["gate_proj", "up_proj", "down_proj"].map((name) => `${layer}.experts.${index}.${name}.weight`);

  it("do not wait for the router's correction bias, which another module owns", async () => {
    const { take, whole, held } = await takingRank({ model: "tiny-deepseek-v3" });
    for (let index = 0; index < 8; index++) await take(...expert(index));
    expect(whole()).toEqual(expect.arrayContaining([`${layer}.experts.w13_weight`, `${layer}.experts.w2_weight`]));
    expect(whole().filter((name) => name.startsWith(`${layer}.gate.`))).toEqual([]);
    expect(held()).toEqual({});
  });

  it("that other ranks hold are neither waited for nor kept: there is no map of them to be loaded", async () => {
    const { take, whole, touched, held } = await takingRank({
      model: "tiny-deepseek-v3",
      rank: 1,
      expertParallel: true,
    });
    for (const index of [0, 1, 2, 3]) await take(...expert(index));
    expect(touched()).toEqual([]);
    expect(held()).toEqual({});
    for (const index of [7, 5, 6, 4]) {
      expect(whole()).toEqual([]);
      await take(...expert(index));
    }
    expect(whole()).toEqual([`${layer}.experts.w13_weight`, `${layer}.experts.w2_weight`]);
  });

  it("of a stack are written as their rows come, in any order, without the rest of the stack", async () => {
    const { take, whole, held } = await takingRank({ model: "tiny-qwen3-moe-stacked" });
    const stack = "model.layers.0.mlp.experts.gate_up_proj";
    for (const index of [2, 0, 1]) {
      expect(whole()).toEqual([]);
      await take([stack, index, index + 1]);
      expect(held()).toEqual({});
    }
    expect(whole()).toEqual(["model.layers.0.mlp.experts.w13_weight"]);
  });
});

describe("a bias between weights", () => {
  const prefix = "model.layers.0.self_attn";

  it("neither completes the weights early nor is lost when they are complete", async () => {
    const { take, whole } = await takingRank({ model: "edge-llama", ranks: 4 });
    const before = ["q_proj.bias", "q_proj.weight", "k_proj.bias", "k_proj.weight", "v_proj.bias"];
    for (const name of before) await take(`${prefix}.${name}`);
    expect(whole()).toEqual([`${prefix}.qkv_proj.bias`]);
    await take(`${prefix}.v_proj.weight`);
    expect(whole().sort()).toEqual([`${prefix}.qkv_proj.bias`, `${prefix}.qkv_proj.weight`]);
  });

  it("that never comes is missing, however many weights have come", async () => {
    const { take, whole } = await takingRank({ model: "edge-llama", ranks: 4 });
    for (const name of ["q_proj", "k_proj", "v_proj"]) await take(`${prefix}.${name}.weight`);
    expect(whole()).toEqual([`${prefix}.qkv_proj.weight`]);
  });
});

describe.each(["tiny-deepseek-v2", "tiny-deepseek-v3", "tiny-qwen2-moe", "tiny-llama", "tiny-gemma3"])(
  "of the arena of %s",
  (model) => {
    it.each(["none", "fp8-tensor", "fp8-block"] as const)(
      "as %s every byte is of a tensor that a push brings, a constant, or derived: none is left as it was",
      async (scheme) => {
        const { layout, source } = await planOf({ model, scheme });
        const arena = layoutArena(layout, 1);
        const matrices = matricesOfRank(layout, arena, 1);
        const cells = newCells(
          matrices,
          source.dtype,
          layout.checkpointTensors.map(({ shape }) => shape),
        );
        const all = bucketOf(
          layout,
          0,
          layout.checkpointTensors.map(({ name }) => name),
        );
        const arrivals = arrivalsOf(cells, all.pieces);
        const spans = [...cells.done.keys()].flatMap((index) => {
          const { geometry, matrix } = matrixAt(cells, index);
          const rowBytes = geometry.outBytes / geometry.rows;
          const start = (geometry.op[OP.outOffset] ?? 0) + matrix * geometry.outBytes;
          return writableRows(cells, index, arrivals.get(index) ?? []).map(({ from, to }) => ({
            offset: start + from * rowBytes,
            bytes: (to - from) * rowBytes,
          }));
        });
        const derived = matrices.derived.flatMap((made) => made.spans);
        const writes = new Uint8Array(arena.dataBytes);
        for (const { offset, bytes } of [...spans, ...derived]) {
          for (let at = offset; at < offset + bytes; at++) writes[at] = (writes[at] ?? 0) + 1;
        }
        // The core writes these with the codes that they scale.
        const scales = new Set(matrices.kernels.map(({ kernel }) => kernel.scale?.name));
        const left = arena.tensors
          .filter(({ name }) => !scales.has(name))
          .filter(({ offset, bytes }) => writes.subarray(offset, offset + bytes).some((count) => count !== 1));
        expect(left.map(({ name }) => name)).toEqual([]);
      },
    );
  },
);
