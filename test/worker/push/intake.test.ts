// What a rank makes of a push, over memory in place of the core: for models of every form, cut and dealt out at random, every byte
// of its arena is written once and is what a pull writes.

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Buffers, LayerProgram, NativeCore, ProgramFile } from "../../../native/native.js";
import { COPY_FIELDS } from "../../../native/native.js";
import { DTYPES, type SourceDType, type StoredDType } from "../../../orchestrator/contract/dtype.js";
import type { ArenaLayout, Plan } from "../../../orchestrator/contract/plan.js";
import type { Bucket, BucketPiece } from "../../../orchestrator/contract/push.js";
import type { ReloadPlan } from "../../../orchestrator/fleet/plan-store.js";
import { planReload } from "../../../orchestrator/planner/plan-reload.js";
import { layoutArena } from "../../../orchestrator/program/arena-layout.js";
import { matricesOfRank, type RankMatrices } from "../../../orchestrator/program/rank-matrices.js";
import { closeIntake } from "../../../worker/intake/close-intake.js";
import { type Intake, openIntake } from "../../../worker/intake/intake.js";
import { openNativeWork } from "../../../worker/native-work.js";
import { type BucketDeps, rowsInBuffers, takeBucket } from "../../../worker/push/take-bucket.js";
import { makeUpExperts } from "../../planner/made-up-experts.js";
import { finite, type Synthetic, synthesize } from "../../planner/synthetic-checkpoint.js";
import { type MoeCase, moeCases, moeCheckpoint, moeShapes, quantizedOnDisk } from "../../planner/synthetic-moe.js";
import { type FilledArena, fillArena, interpret, rowsOf } from "../../program/interpret-program.js";

const OWNER = { reload: "r", epoch: 1, content: "r" };
const PAGE_BYTES = 4096;
const BUFFERS_PATH = "buffers";

/** A rank whose memory is arrays, and what its buffers hold page by page. */
function rankInMemory(plan: Plan, rank: number, rowsTogether: number | "all" | null) {
  const arena = layoutArena(plan.layout, rank);
  const filled: FilledArena = {
    bytes: new Uint8Array(arena.dataBytes).fill(0xa5),
    writes: new Uint8Array(arena.dataBytes),
  };
  const files = new Map<string, Uint8Array>();
  const pages = new Set<number>();
  let changes = 0;
  let isOpen = false;
  const core = {
    openBuffers(bytes: number) {
      files.set(BUFFERS_PATH, new Uint8Array(bytes).fill(0xa5));
      isOpen = true;
      return {} as Buffers;
    },
    async fillBuffers(_: Buffers, sources: ProgramFile[], copies: Float64Array) {
      const to = files.get(BUFFERS_PATH) ?? new Uint8Array();
      for (const { file, offset, rowStride, rows, rowBytes, toOffset } of rowsOf(COPY_FIELDS, copies)) {
        const from = files.get(sources[file]?.path ?? "") ?? new Uint8Array();
        for (let row = 0; row < rows; row++) {
          to.set(
            from.subarray(offset + row * rowStride, offset + row * rowStride + rowBytes),
            toOffset + row * rowBytes,
          );
        }
        for (let at = toOffset; at < toOffset + rows * rowBytes; at++) pages.add(Math.floor(at / PAGE_BYTES));
      }
      changes += 1;
      return { bytesRead: 0, readMs: 0 };
    },
    describeBuffers: () => ({
      file: { path: BUFFERS_PATH, sizeBytes: 0, mtimeNs: String(changes), inode: "1" },
      heldBytes: pages.size * PAGE_BYTES,
    }),
    async freeBuffers(_: Buffers, spans: { offset: number; bytes: number }[]) {
      for (const { offset, bytes } of spans) {
        // What is read after it was given back must not be what it was.
        files.get(BUFFERS_PATH)?.fill(0xa5, offset, offset + bytes);
        for (let at = offset; at < offset + bytes; at += PAGE_BYTES) pages.delete(Math.floor(at / PAGE_BYTES));
      }
      changes += 1;
    },
    closeBuffers: () => {
      isOpen = false;
    },
    createCancel: () => ({}),
    cancel: () => {},
  } as unknown as NativeCore;
  const run = async (program: LayerProgram) => {
    const seen = changes;
    await Promise.resolve();
    interpret(program, files, filled);
    if (program.files[1]?.path === BUFFERS_PATH) expect(program.files[1].mtimeNs).toBe(String(seen));
    return { bytesRead: 0, bytesWritten: 0, readMs: 0, placeMs: 0, quantizeMs: 0, writeMs: 0, digest: "0" };
  };
  const report = { layerWritten: () => {}, layerComplete: () => {}, cut: () => {} };
  const deps = {
    core,
    work: openNativeWork(core, () => {}),
    run: (_owner: unknown, _plan: unknown, { program }: { program: LayerProgram }) => run(program),
    report,
  } as unknown as BucketDeps;
  const matrices = matricesOfRank(plan.layout, arena, rank);
  if (rowsTogether !== null) groupRows(matrices, rowsTogether);
  const loaded = { ...plan, allowNonFinite: false, ...PUSH } as unknown as ReloadPlan;
  const intake: Intake = openIntake(OWNER, loaded, matrices);
  let spans: unknown = "not closed";
  const staging = {
    async close(_owner: unknown, _digest: unknown, closed: unknown) {
      spans = closed;
    },
  };
  return {
    arena,
    filled,
    intake,
    heldBytes: () => pages.size * PAGE_BYTES,
    isOpen: () => isOpen,
    closedOver: () => spans,
    take(bucket: Bucket, bytes: Uint8Array) {
      files.set(bucket.file.path, bytes);
      return takeBucket(intake, bucket, deps).finally(() => files.delete(bucket.file.path));
    },
    close: () => closeIntake(intake, rowsInBuffers(intake, deps), deps, staging),
  };
}

const PUSH = { kind: "push", base: null, limits: { maxBufferBytes: null, warnBufferBytes: 0 } };

/** As recipes do that must see several rows, or all, of a matrix: what is in between waits in buffers. */
function groupRows({ kernels }: RankMatrices, rowsTogether: number | "all"): void {
  for (const kernel of kernels) if (kernel.rowsTogether !== "all") kernel.rowsTogether = rowsTogether;
}

type Part = Omit<BucketPiece, "offset"> & { bytes: Uint8Array };

/** Tensors cut into rows and dealt out, by numbers that fast-check gives. */
function dealt(plan: Plan, { table, files }: Synthetic, next: () => number): { bucket: Bucket; bytes: Uint8Array }[] {
  const parts = plan.layout.checkpointTensors.flatMap(({ name, shape }, tensor) => {
    const [rows = 1, ...rest] = shape;
    const stored = table.tensors.get(name);
    const dtype = (stored?.dtype ?? "BF16") as StoredDType;
    const elementBytes = DTYPES[dtype].bytes;
    const came = dtype === plan.source.dtype[tensor] ? {} : { dtype: dtype as SourceDType };
    const rowBytes = rest.reduce((product, size) => product * size, elementBytes);
    const file = files.get(table.files[stored?.file ?? 0]?.path ?? "") ?? new Uint8Array();
    const cuts: Part[] = [];
    for (let from = 0; from < rows; ) {
      const to = Math.min(rows, from + 1 + (next() % rows));
      const at = (stored?.offset ?? 0) + from * rowBytes;
      const bytes = file.subarray(at, at + (to - from) * rowBytes);
      cuts.push({ tensor, firstRow: from, rows: to - from, bytes, ...came });
      from = to;
    }
    return cuts;
  });
  const order = parts.map((part) => ({ part, at: next() })).sort((a, b) => a.at - b.at);
  const buckets: { bucket: Bucket; bytes: Uint8Array }[] = [];
  while (order.length > 0) {
    const taken = order.splice(0, 1 + (next() % order.length));
    buckets.push(
      bucketOf(
        buckets.length,
        taken.map(({ part }) => part),
      ),
    );
  }
  return buckets;
}

function bucketOf(sequence: number, parts: Part[]) {
  let end = 8 + (sequence % 3);
  const pieces = parts.map(({ bytes, ...part }) => {
    const offset = end;
    end += bytes.byteLength;
    return { ...part, offset };
  });
  const bytes = new Uint8Array(end).fill(0x5a);
  for (const [at, part] of parts.entries()) bytes.set(part.bytes, pieces[at]?.offset);
  const file = { path: `bucket-${sequence}`, sizeBytes: end, mtimeNs: "0", inode: "2", headerDigest: "" };
  const bucket: Bucket = { sequence, number: sequence, delivery: 0, file, isReadable: true, pieces, bytes: end };
  return { bucket, bytes };
}

/** Every byte of every tensor is written once, and no other. */
function onceEach({ tensors, dataBytes }: ArenaLayout): Uint8Array {
  const writes = new Uint8Array(dataBytes);
  for (const { offset, bytes } of tensors) writes.fill(1, offset, offset + bytes);
  return writes;
}

/** Numbers of a seed: the same ones for the same seed. */
function numbersFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state >>> 8;
  };
}

function planOf(checkpoint: Synthetic, { ranks, expertParallel }: MoeCase, isCodes: boolean): Plan {
  const { table, config } = checkpoint;
  const asked = { scheme: "none", dtype: isCodes ? "bfloat16" : "auto", ignore: [] } as const;
  return planReload({ table, config, tensorParallelSize: ranks, expertParallel, ...asked });
}

const cases = moeCases(2, { most: 3, ranks: [1, 2] });
/** FP8 codes that are transposed on disk are refused. */
const codeCases = cases.filter(({ form }) => form === "each" || form === "stacked");
const together = fc.constantFrom<number | "all" | null>(null, 3, "all");

describe("a push in any order and any parts", () => {
  it.each([
    ["values", moeCheckpoint, false],
    ["codes with scales by block", (model: MoeCase) => quantizedOnDisk(model, "block"), true],
    ["codes with scales by row", (model: MoeCase) => quantizedOnDisk(model, "channel"), true],
  ] as const)(
    "of %s writes every byte of the arena once, and those of a pull; its buffers are empty at the end",
    async (_, make, isCodes) => {
      await fc.assert(
        fc.asyncProperty(isCodes ? codeCases : cases, together, fc.nat(), async (model, rowsTogether, seed) => {
          const checkpoint = make(model);
          const plan = planOf(checkpoint, model, isCodes);
          makeUpExperts(plan, 1 + (seed % 5));
          const next = numbersFrom(seed);
          const buckets = dealt(plan, checkpoint, next);
          for (let rank = 0; rank < model.ranks; rank++) {
            const held = rankInMemory(plan, rank, rowsTogether);
            for (const { bucket, bytes } of buckets) {
              await held.take(bucket, bytes);
              if (next() % 4 === 0) await held.take(bucket, bytes); // delivered again
            }
            expect(held.intake.cells.heldByModule).toEqual(new Map());
            await held.close();
            const pulled = fillArena(plan, held.arena, rank, checkpoint.files);
            expect(Buffer.compare(held.filled.bytes, pulled.bytes)).toBe(0);
            expect(Buffer.compare(held.filled.writes, pulled.writes)).toBe(0);
            expect(Buffer.compare(pulled.writes, onceEach(held.arena))).toBe(0);
            expect(held.closedOver()).toBeNull();
          }
        }),
        { numRuns: 60 },
      );
    },
  );

  it("of values in other dtypes than planned is that of a pull of them, each rounded", async () => {
    await fc.assert(
      fc.asyncProperty(cases, together, fc.nat(), async (model, rowsTogether, seed) => {
        const next = numbersFrom(seed);
        const shapes = moeShapes(model);
        const dtypes = Object.fromEntries(
          Object.keys(shapes).map((name) => [name, next() % 2 ? "F32" : "BF16"] as const),
        );
        const mixed = finite(synthesize(model.fields, shapes, { fileCount: model.fileCount, dtypes }));
        const asked = { tensorParallelSize: model.ranks, expertParallel: model.expertParallel, ignore: [] } as const;
        const planned = (checkpoint: Synthetic) =>
          planReload({ ...checkpoint, ...asked, scheme: "none", dtype: "bfloat16" });
        const plan = planned(moeCheckpoint(model));
        const pull = planned(mixed);
        expect(plan.layoutDigest).toBe(pull.layoutDigest);
        const buckets = dealt(plan, mixed, next);
        for (let rank = 0; rank < model.ranks; rank++) {
          const held = rankInMemory(plan, rank, rowsTogether);
          for (const { bucket, bytes } of buckets) await held.take(bucket, bytes);
          await held.close();
          const pulled = fillArena(pull, held.arena, rank, mixed.files);
          expect(Buffer.compare(held.filled.bytes, pulled.bytes)).toBe(0);
        }
      }),
      { numRuns: 40 },
    );
  });

  it("cannot be closed while a single row is missing, whichever it is", async () => {
    await fc.assert(
      fc.asyncProperty(cases, together, fc.nat(), async (model, rowsTogether, seed) => {
        const checkpoint = moeCheckpoint(model);
        const plan = planOf(checkpoint, { ...model, ranks: 1 }, false);
        const buckets = dealt(plan, checkpoint, numbersFrom(seed));
        const held = rankInMemory(plan, 0, rowsTogether);
        const lost = seed % buckets.length;
        for (const [at, { bucket, bytes }] of buckets.entries()) if (at !== lost) await held.take(bucket, bytes);
        await expect(held.close()).rejects.toMatchObject({ code: "tensor_missing" });
      }),
      { numRuns: 40 },
    );
  });
});
