// A trainer for tests: opens a push of a fixture's tensors and sends them, in whatever buckets a test wants, as files under the
// cluster's sources.

import { randomUUID } from "node:crypto";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { type BucketView, ROW_RANGES_KEY } from "../../orchestrator/contract/push.js";
import type { ReloadView } from "../../orchestrator/contract/reload.js";
import { buildSafetensors } from "../checkpoint/build-safetensors.js";
import { CHECKPOINTS, type Cluster } from "./cluster.js";
import { readTensors, type Tensors } from "./held-tensors.js";

/** Rows [from, to) of a tensor's first dimension. */
export interface Rows {
  name: string;
  from: number;
  to: number;
}

export interface PushTensors {
  names: string[];
  tensors: Tensors;
  config: Record<string, unknown>;
  /** Opens a push of all of them; `source` and the rest of the body as given. */
  open(cluster: Cluster, body?: Record<string, unknown>, source?: Record<string, unknown>): Promise<PushSession>;
}

export interface PushSession {
  reload: ReloadView;
  /** Posts a bucket of whole tensors, or of rows of them. */
  send(what: readonly (string | Rows)[]): Promise<BucketView>;
  /** Writes one without sending it. */
  write(what: readonly (string | Rows)[]): string;
  post(uri: string, more?: Record<string, unknown>): Promise<BucketView>;
  /** Waits until it is not pending any more. */
  consumed(bucket: BucketView): Promise<BucketView>;
  /** Finishes, and waits for the end. */
  finish(): Promise<ReloadView>;
  /** Waits until nothing of it is left in the spool: after a commit, which ranks write, a sweep gives it up. */
  forgotten(): Promise<void>;
}

export function pushOfFixture(model: string, version: string): PushTensors {
  const directory = join(CHECKPOINTS, model, version);
  const tensors: Tensors = new Map();
  for (const file of readdirSync(directory).filter((name) => name.endsWith(".safetensors"))) {
    for (const [name, tensor] of readTensors(join(directory, file))) tensors.set(name, tensor);
  }
  return pushOf(tensors, JSON.parse(readFileSync(join(directory, "config.json"), "utf8")) as Record<string, unknown>);
}

export function pushOf(tensors: Tensors, config: Record<string, unknown>): PushTensors {
  return {
    names: [...tensors.keys()],
    tensors,
    config,
    async open(cluster, body = {}, source = {}) {
      const listed = [...tensors].map(([name, { dtype, shape }]) => ({ name, dtype, shape }));
      const submitted = await cluster.client.submit({
        fleet: cluster.fleet,
        submission_id: randomUUID(),
        ...body,
        source: { kind: "push", config, tensors: listed, ...source },
      });
      await cluster.reached(submitted.reload_id, "loading");
      return sessionOf(cluster, submitted, tensors);
    },
  };
}

let written = 0;

function sessionOf(cluster: Cluster, reload: ReloadView, tensors: Tensors): PushSession {
  const id = reload.reload_id;
  const write: PushSession["write"] = (what) => {
    written += 1;
    const path = join(cluster.sources, `bucket-${written}.safetensors`);
    writeFileSync(path, bucketBytes(tensors, what));
    return pathToFileURL(path).href;
  };
  // As a trainer should: 429 means later, and an answer that is lost with its orchestrator is asked for again.
  const post: PushSession["post"] = (uri, more = {}) =>
    cluster.until("a bucket to be accepted", () =>
      cluster.client.postBucket(id, { uri, immutable: false, ...more }).catch(laterIf),
    );
  return {
    reload,
    write,
    post,
    send: (what) => post(write(what)),
    consumed: ({ bucket }) =>
      cluster.until(`bucket ${bucket} to be consumed`, async () => {
        const view = await cluster.client.bucket(id, bucket, 1_000).catch(laterIf);
        return view === null || view.state === "pending" ? null : view;
      }),
    async finish() {
      await cluster.until("the push to be finished", () => cluster.client.finish(id).catch(laterIf));
      return cluster.ended(id);
    },
    async forgotten() {
      const kept = join(cluster.runDir, "spool", id);
      await cluster.until("the spool to be empty", async () => (existsSync(kept) ? null : true));
    },
  };
}

function laterIf(error: unknown): null {
  const { code } = error as { code?: string };
  if (code === "backpressure" || code === "io_error" || code === "redis_unavailable") return null;
  throw error;
}

/** A safetensors file of whole tensors, and of rows with where they belong. */
export function bucketBytes(tensors: Tensors, what: readonly (string | Rows)[]): Uint8Array {
  const held: Tensors = new Map();
  const ranges: Record<string, { offset: number[]; global_shape: number[] }> = {};
  for (const one of what) {
    const name = typeof one === "string" ? one : one.name;
    const tensor = tensors.get(name);
    if (tensor === undefined) throw new Error(`there is no tensor ${name}`);
    if (typeof one === "string") {
      held.set(name, tensor);
      continue;
    }
    const [rows = 1, ...rest] = tensor.shape;
    const rowBytes = (tensor.bytes?.byteLength ?? 0) / rows;
    const bytes = tensor.bytes?.subarray(one.from * rowBytes, one.to * rowBytes) ?? new Uint8Array();
    held.set(name, { ...tensor, shape: [one.to - one.from, ...rest], bytes });
    ranges[name] = { offset: [one.from, ...rest.map(() => 0)], global_shape: tensor.shape };
  }
  return buildSafetensors(Object.fromEntries(held), { [ROW_RANGES_KEY]: JSON.stringify(ranges) });
}
