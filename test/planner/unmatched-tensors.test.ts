// What an index names and no file holds is missed only where the model needs it.

import { describe, expect, it } from "vitest";
import type { CheckpointTable } from "../../orchestrator/contract/plan.js";
import { planReload } from "../../orchestrator/planner/plan-reload.js";
import { expectLayercastError } from "../checkpoint/expect-error.js";
import { type Change, L0, requestOf } from "./changed-llama.js";

/** Plans the checkpoint of `change` with an index that also names these; in a shard that is gone, or in one that is there. */
function planWith(absent: string[], isFileThere: boolean, change: Change = {}) {
  const request = requestOf(change);
  const table: CheckpointTable = {
    ...request.table,
    absent: new Map(absent.map((name) => [name, { file: "model-00009-of-00009.safetensors", isFileThere }])),
  };
  return planReload({ ...request, table });
}

describe.each([true, false])("whether or not the file is there (%s)", (isFileThere) => {
  const code = isFileThere ? "tensor_missing" : "source_not_found";

  it("nobody misses a tied head, layers past the last, rotary tables, or what no model of the family has", () => {
    const tied = { fields: { tie_word_embeddings: true }, tensors: { "lm_head.weight": null } };
    const names = [
      "lm_head.weight",
      "model.layers.2.eh_proj.weight",
      `${L0}self_attn.rotary_emb.inv_freq`,
      "decoder.x",
    ];
    expect(planWith(names, isFileThere, tied).layoutDigest).toBe(planWith([], isFileThere, tied).layoutDigest);
  });

  it("a tensor that the model needs is named, with the file that should hold it", () => {
    const error = expectLayercastError(
      () => planWith(["model.norm.weight"], isFileThere, { tensors: { "model.norm.weight": null } }),
      code,
      /puts model\.norm\.weight into model-00009-of-00009\.safetensors.*stale/,
    );
    expect(error.details).toMatchObject({ tensors: ["model.norm.weight"], count: 1 });
  });

  it("so is an attention scale, which would else be 1 in silence", () => {
    expectLayercastError(
      () => planWith([`${L0}self_attn.attn.k_scale`], isFileThere),
      code,
      /puts \S+attn\.k_scale into/,
    );
  });

  it("a needed tensor that the index does not name either is missing as ever", () => {
    const change = { tensors: { "model.norm.weight": null } };
    expectLayercastError(() => planWith([], isFileThere, change), "tensor_missing", /lacks 1 of the tensors/);
  });
});

describe("tensors that are missing under their own names", () => {
  it("are said to be there under a prefix that no rule takes off", () => {
    const request = requestOf({});
    const renamed = [...request.table.tensors.values()].map((one) => ({ ...one, name: `policy.${one.name}` }));
    const tensors = new Map(renamed.map((one) => [one.name, one]));
    expectLayercastError(
      () => planReload({ ...request, table: { ...request.table, tensors } }),
      "tensor_missing",
      /some of them under the prefix "policy\."/,
    );
  });
});
