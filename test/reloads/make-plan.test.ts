// What a plan is made for: the ranks of one that nobody submits, and a push.

import { describe, expect, it } from "vitest";
import { pushSettings } from "../../orchestrator/contract/push.js";
import type { StoredRequest } from "../../orchestrator/fleet/record-store.js";
import { makePlan, plannedRanks } from "../../orchestrator/reloads/make-plan.js";
import { declaredCheckpoint } from "../../orchestrator/reloads/push/push-model.js";
import { expectLayercastError } from "../checkpoint/expect-error.js";
import { LLAMA } from "../planner/synthetic-checkpoint.js";

const fleetOf = (expertParallel?: boolean) => ({
  topology: { replicas: 1, tensorParallelSize: 8, ...(expertParallel === undefined ? {} : { expertParallel }) },
});

describe("plannedRanks", () => {
  it("are the request's, else the fleet's", () => {
    expect(plannedRanks({ tensor_parallel_size: 4 }, null)).toEqual({ tensorParallelSize: 4, expertParallel: false });
    expect(plannedRanks({}, fleetOf(true))).toEqual({ tensorParallelSize: 8, expertParallel: true });
    expect(plannedRanks({}, fleetOf())).toEqual({ tensorParallelSize: 8, expertParallel: false });
    expect(plannedRanks({ tensor_parallel_size: 2, expert_parallel: false }, fleetOf(true))).toEqual({
      tensorParallelSize: 2,
      expertParallel: false,
    });
  });

  it("must be known from somewhere", () => {
    for (const fleet of [null, { topology: null }]) {
      expect(() => plannedRanks({ expert_parallel: true }, fleet)).toThrow(/give tensor_parallel_size, or a fleet/);
    }
  });
});

describe("makePlan, for a push", () => {
  const held = { reload: "a", content: "a", weightVersion: "a", epoch: 1, layoutDigest: "layout" };
  const stateWith = (committed: typeof held | null) => ({
    topology: { replicas: 1, tensorParallelSize: 2 },
    ranks: {},
    committed,
  });
  const requestFor = (source: StoredRequest["source"]): StoredRequest => ({
    source,
    dtype: "auto",
    recipe: { scheme: "fp8-tensor", ignore: [] },
    install: { mode: "staged", staging: "auto", allow_new_layout: false, allow_non_finite: false },
    policy: {
      ...{ coalesce: "never", priority: 0, deadline_ms: 1, heal_ms: 1, attempts: 3, backoff_ms: 5 },
      layers_per_job: 1,
    },
    metadata: {},
  });
  const model = { config: { ...LLAMA, torch_dtype: "bfloat16" }, tensors: null };
  const push = (said: Parameters<typeof pushSettings>[0], committed: typeof held | null = null) =>
    makePlan(requestFor(pushSettings(said)), stateWith(committed), declaredCheckpoint(model));

  it("has no jobs by layer, and says how ranks take buckets", () => {
    const plan = push({ retain_export: true, max_buffer_bytes: 7, warn_buffer_bytes: 5 });
    expect(plan.layerJobs).toEqual([]);
    const limits = { maxBufferBytes: 7, warnBufferBytes: 5 };
    expect(plan).toMatchObject({ kind: "push", base: null, retainExport: true, limits });
    const none = { maxBufferBytes: null, warnBufferBytes: 0 };
    expect(push({})).toMatchObject({ kind: "push", base: null, retainExport: false, limits: none });
  });

  it("has the layout of a pull of the same tensors", () => {
    const pull = makePlan(
      requestFor({ kind: "safetensors", uri: "/ckpt" }),
      stateWith(null),
      declaredCheckpoint(model),
    );
    expect([pull.kind, pull.base, pull.layerJobs.length]).toEqual(["safetensors", null, pull.layout.layers.length]);
    expect(push({}).layoutDigest).toBe(pull.layoutDigest);
  });

  it("that is partial begins with the weights that are held, and needs some", () => {
    expect(push({ partial: true }, held).base).toEqual(held);
    expect(push({}, held).base).toBeNull();
    expectLayercastError(
      () => push({ partial: true }),
      "invalid_request",
      /holds no weights yet.*push all modules first/,
    );
  });

  it("is of a config that is nested as configs are", () => {
    let nested: unknown = 0;
    for (let level = 0; level < 10_000; level++) nested = [nested];
    expectLayercastError(
      () => declaredCheckpoint({ config: { ...LLAMA, nested }, tensors: null }),
      "invalid_request",
      /^source\.config is nested deeper than 32/,
    );
  });
});
