// The submission of a push: what makes it impossible is answered before there is a record, and its model is kept beside that.

import type { Redis } from "ioredis";
import { beforeEach, describe, expect, it } from "vitest";
import { KEYS } from "../../orchestrator/contract/jobs.js";
import type { SubmitRequest } from "../../orchestrator/contract/reload.js";
import { type FleetStore, openFleetStore } from "../../orchestrator/fleet/fleet-store.js";
import { openRecordStore } from "../../orchestrator/fleet/record-store.js";
import type { ReloadDeps } from "../../orchestrator/reloads/deps.js";
import { loadPushModel } from "../../orchestrator/reloads/push/push-model.js";
import { submitReload } from "../../orchestrator/reloads/submit-reload.js";
import { openTurns } from "../../orchestrator/reloads/turns.js";
import { expectLayercastRejection } from "../checkpoint/expect-error.js";
import { LLAMA } from "../planner/synthetic-checkpoint.js";
import { usePrivateRedis } from "../private-redis.js";
import { testFleet } from "./fleet.js";

let redis: Redis;
usePrivateRedis("submit-push", (opened) => {
  redis = opened;
});
let store: FleetStore;
beforeEach(() => {
  store = openFleetStore(redis);
});

const FLEET = "f";
const CONFIG = { ...LLAMA, torch_dtype: "bfloat16" };
const HELD = { reload: "a", content: "a", weightVersion: "a", epoch: 1, layoutDigest: "layout" };
const TENSORS = [{ name: "lm_head.weight", dtype: "BF16" as const, shape: [100, 24] }];

const pushOf = (source: Partial<SubmitRequest["source"]> = {}, more: Partial<SubmitRequest> = {}): SubmitRequest => ({
  fleet: FLEET,
  source: { kind: "push", config: CONFIG, ...source },
  dtype: "auto",
  recipe: { scheme: "none", ignore: [] },
  install: { mode: "staged", staging: "auto", allow_new_layout: false, allow_non_finite: false },
  policy: {
    ...{ coalesce: "never", priority: 0, deadline_ms: 1_000, heal_ms: 1_000, attempts: 3, backoff_ms: 5 },
    layers_per_job: "auto",
  },
  metadata: {},
  ...more,
});

const submitted = (request: SubmitRequest) =>
  submitReload({ redis, store, submitting: openTurns(10_000) } as unknown as ReloadDeps, request);

/** Two ranks have registered once. */
async function standing(tensorParallelSize: number, committed: typeof HELD | null = null): Promise<void> {
  const { state } = testFleet(tensorParallelSize);
  await store.transact(FLEET, (draft) => Object.assign(draft, { topology: state.topology, committed }));
}

const records = () => redis.zcard(KEYS.reloads);

describe("a push that is submitted", () => {
  it("is a record with its settings, and its model beside that", async () => {
    const { id } = await submitted(pushOf({ tensors: TENSORS, retain: "trainer", idle_ms: 7 }));
    const { record, request } = await openRecordStore(redis).read(id);
    expect(record.push).toMatchObject({ finished: false, partial: false });
    expect(request.source).toEqual({
      kind: "push",
      retain: "trainer",
      retainExport: false,
      partial: false,
      idleMs: 7,
      maxPendingBuckets: 8,
      maxBufferBytes: null,
      warnBufferBytes: 0,
    });
    expect(await loadPushModel(redis, id)).toEqual({ config: CONFIG, tensors: TENSORS });
    await redis.del(KEYS.pushModel(id));
    await expectLayercastRejection(loadPushModel(redis, id), "source_gone", /push its weights again/);
  });

  it("is one reload when it is submitted twice, even to a fleet that could no longer take it", async () => {
    const first = await submitted(pushOf({}, { submission_id: "once" }));
    await standing(7);
    expect(await submitted(pushOf({}, { submission_id: "once" }))).toEqual({ id: first.id, created: false });
    const other = pushOf({ config: { ...CONFIG, vocab_size: 50 } }, { submission_id: "once" });
    await expectLayercastRejection(submitted(other), "submission_conflict", /with another body/);
    expect(await redis.keys(KEYS.pushModel("*"))).toEqual([KEYS.pushModel(first.id)]);
  });

  it("is refused at once for what its config or its list lacks, and leaves nothing behind", async () => {
    await standing(2);
    await expectLayercastRejection(
      submitted(pushOf({ config: { ...CONFIG, vocab_size: null } })),
      "checkpoint_invalid",
      /^source\.config must give vocab_size/,
    );
    await expectLayercastRejection(
      submitted(pushOf({ tensors: TENSORS })),
      "tensor_missing",
      /^source\.tensors lacks /,
    );
    expect([await records(), await redis.keys(KEYS.pushModel("*"))]).toEqual([0, []]);
    await submitted(pushOf());
    expect(await records()).toBe(1);
  });

  it("is refused at once where the ranks cannot split it, when it is known how many there are", async () => {
    await submitted(pushOf());
    await standing(7);
    await expectLayercastRejection(submitted(pushOf()), "indivisible", /over 7 ranks/);
    expect(await records()).toBe(1);
  });

  it("in parts needs weights to change: those that are held, or those of reloads before it", async () => {
    await standing(2);
    await expectLayercastRejection(submitted(pushOf({ partial: true })), "invalid_request", /holds no weights yet/);
    await submitted(pushOf());
    await submitted(pushOf({ partial: true }));
    await redis.flushall();
    await standing(2, HELD);
    await submitted(pushOf({ partial: true }));
    expect(await records()).toBe(1);
  });
});
