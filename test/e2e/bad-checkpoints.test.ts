// A bad checkpoint ends its reload with a clear error, and the weights before it stay live on every rank.

import { copyFileSync, readFileSync, renameSync, statSync, truncateSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { Golden } from "../../orchestrator/cli/compare-tensors.js";
import type { ErrorCode } from "../../orchestrator/contract/errors.js";
import { type Cluster, checkpoint, clearFaults, startCluster } from "./cluster.js";
import { copiedCheckpoint, editedCheckpoint } from "./edit-checkpoint.js";
import type { Tensors } from "./held-tensors.js";

const RECIPE = { scheme: "fp8-channel" };
const GATE = "model.layers.1.mlp.gate_proj.weight";
const BF16_NAN = [0xc0, 0x7f];

let cluster: Cluster;
let before: Golden[];
beforeAll(async () => {
  cluster = await startCluster({ tp: 2 });
  expect((await cluster.reload({ source: checkpoint("tiny-qwen3", "v1"), recipe: RECIPE })).state).toBe("committed");
  before = await cluster.exportAll();
});
afterAll(() => cluster.stop());
beforeEach(() => clearFaults(cluster));

async function refuses(source: string, code: ErrorCode, ...words: string[]): Promise<void> {
  const reload = await cluster.reload({ source, recipe: RECIPE });
  expect(reload.error?.code).toBe(code);
  expect(reload).toMatchObject({ state: "failed", status: "FAILED", live_changed: false });
  for (const word of words) expect(reload.error?.message).toContain(word);
  expect(await cluster.exportAll()).toEqual(before);
  expect(await cluster.client.fleet(cluster.fleet)).toMatchObject({ routable: true, torn: false });
}

describe("found while planning", () => {
  const edits: [string, (tensors: Tensors, config: Record<string, unknown>) => void, ErrorCode, string][] = [
    ["a tensor missing", (tensors) => void tensors.delete(GATE), "tensor_missing", GATE],
    [
      "a tensor nobody expects",
      (tensors) =>
        void tensors.set("model.layers.1.mlp.extra.weight", { dtype: "BF16", shape: [1], bytes: new Uint8Array(2) }),
      "tensor_unexpected",
      "model.layers.1.mlp.extra.weight",
    ],
    [
      "a tensor of another shape",
      (tensors) => void tensors.set(GATE, { dtype: "BF16", shape: [1, 2], bytes: new Uint8Array(4) }),
      "shape_mismatch",
      GATE,
    ],
    [
      "an architecture nobody knows",
      (_, config) => void Object.assign(config, { architectures: ["OddForCausalLM"] }),
      "unsupported_architecture",
      "OddForCausalLM",
    ],
  ];
  it.each(edits)("%s is named", (_, edit, code, word) => refuses(editedCheckpoint(cluster, edit).uri, code, word));

  it("a file that is shorter than its header says is invalid, not a dead process", async () => {
    const copy = copiedCheckpoint(cluster, "v2");
    const file = copy.fileOf(GATE);
    truncateSync(file, statSync(file).size - 1000);
    await refuses(copy.uri, "checkpoint_invalid", file);
  });

  it("a dimension that does not divide is named with its numbers", async () => {
    const odd = editedCheckpoint(cluster, (tensors, config) => {
      config.num_key_value_heads = 3;
      config.num_attention_heads = 3;
      for (const [name, tensor] of tensors) {
        const rows = /\.(q|k|v)_proj\.weight$/.test(name) ? 96 : null;
        if (rows !== null) tensors.set(name, { ...tensor, shape: [rows, 192], bytes: new Uint8Array(rows * 192 * 2) });
        if (name.endsWith(".o_proj.weight"))
          tensors.set(name, { ...tensor, shape: [192, 96], bytes: new Uint8Array(192 * 96 * 2) });
      }
    });
    await refuses(odd.uri, "indivisible", "3", "2");
  });
});

describe("found while loading", () => {
  it("a value that is not finite is named by its tensor and element, whatever rank reads it", async () => {
    const bad = editedCheckpoint(cluster, (tensors) => {
      const gate = tensors.get(GATE);
      gate?.bytes.set(BF16_NAN, (200 * 192 + 7) * 2); // row 200 of 384 is rank 1's
    });
    await refuses(bad.uri, "non_finite_weights", `${GATE}[200, 7]`, "rank 0/1", "model.layers.1");
  });

  it("with allow_non_finite the same checkpoint commits", async () => {
    const bad = editedCheckpoint(cluster, (tensors) => tensors.get(GATE)?.bytes.set(BF16_NAN, 0));
    const reload = await cluster.reload({ source: bad.uri, recipe: RECIPE, install: { allow_non_finite: true } });
    expect(reload.state).toBe("committed");
    const rollback = await cluster.client.rollback(cluster.fleet, {});
    expect((await cluster.ended(rollback.reload_id)).state).toBe("committed");
    expect(await cluster.exportAll()).toEqual(before);
  });

  const changes: [string, (file: string) => void][] = [
    ["truncated", (file) => truncateSync(file, 4096)],
    [
      "replaced by another file",
      (file) => {
        copyFileSync(file, `${file}.new`);
        renameSync(`${file}.new`, file);
      },
    ],
    ["touched", (file) => utimesSync(file, new Date(0), new Date(0))],
  ];
  it.each(changes)("a file %s midway is source_changed", async (_, change) => {
    const copy = copiedCheckpoint(cluster, "v2");
    const held = cluster.fault("worker.layer@0-1", "wait");
    const { reload_id } = await cluster.submit({ source: copy.uri, recipe: RECIPE });
    await held.hit();
    change(copy.fileOf("model.layers.2.mlp.down_proj.weight"));
    held.release();
    const ended = await cluster.ended(reload_id);
    expect(ended).toMatchObject({ state: "failed", live_changed: false, error: { code: "source_changed" } });
    expect(await cluster.exportAll()).toEqual(before);
  });

  it("a header rewritten under the same size, time and inode is source_changed", async () => {
    const copy = copiedCheckpoint(cluster, "v2");
    const file = copy.fileOf(GATE);
    const { atimeMs, mtimeNs } = statSync(file, { bigint: true });
    const held = cluster.fault("orchestrator.planned", "wait");
    const { reload_id } = await cluster.submit({ source: copy.uri, recipe: RECIPE });
    await held.hit();
    const bytes = readFileSync(file);
    const at = bytes.indexOf("gate_proj");
    writeFileSync(file, Buffer.concat([bytes.subarray(0, at), Buffer.from("gate_pr0j"), bytes.subarray(at + 9)]));
    utimesSync(file, Number(atimeMs) / 1000, Number(mtimeNs) / 1e9);
    held.release();
    expect((await cluster.ended(reload_id)).error?.code).toBe("source_changed");
  });
});

it("a source outside the roots, or none at all, is refused before there is a reload", async () => {
  await expect(cluster.submit({ source: "file:///etc" })).rejects.toMatchObject({ code: "source_not_allowed" });
  const nowhere = `file://${join(cluster.sources, "nowhere")}`;
  await expect(cluster.submit({ source: nowhere })).rejects.toMatchObject({ code: "source_not_found" });
});

it("a source whose file system stands still keeps nothing waiting but who asked for it", async () => {
  const { client, fleet } = cluster;
  const copy = copiedCheckpoint(cluster, "v2");
  const held = cluster.fault("source.readTable", "wait");
  const planning = client.plan({ source: { kind: "safetensors", uri: copy.uri }, fleet });
  await held.hit();
  expect(await client.fleet(fleet)).toMatchObject({ routable: true });
  const other = { kind: "safetensors" as const, uri: checkpoint("tiny-qwen3", "v3") };
  const { layout_digest } = await client.plan({ source: other, fleet });
  held.release();
  expect(await planning).toMatchObject({ layout_digest });
});
