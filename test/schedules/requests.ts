// What users ask for, as the routes would: through the same transitions, with the request beside the record.

import { LayercastError } from "../../orchestrator/contract/errors.js";
import { KEYS } from "../../orchestrator/contract/jobs.js";
import { setHooks } from "../../orchestrator/fleet/engine-transitions.js";
import type { FleetStore } from "../../orchestrator/fleet/fleet-store.js";
import type { StoredReload } from "../../orchestrator/fleet/record-store.js";
import { cancel, type NewReload, submit } from "../../orchestrator/fleet/reload-transitions.js";
import { drain, undrain } from "../../orchestrator/fleet/replica-transitions.js";
import type { LayoutName } from "./checkpoints.js";
import { readRecord } from "./memory-redis.js";
import { FLEET, type Sim } from "./sim.js";

export interface Request {
  checkpoint: number;
  layout: LayoutName;
  inPlace: boolean;
  coalesce: "never" | "latest";
  attempts: number;
  deadlineMs: number;
  healMs: number;
}

export const HOOK_TIMEOUT_MS = 1_000;

export async function submitTo(sim: Sim, store: FleetStore, id: string, request: Request): Promise<void> {
  const { checkpoint, layout, inPlace, coalesce, deadlineMs, healMs } = request;
  const reload = { ...newReload(id), coalesce, inPlace, deadlineMs, healMs, weightVersion: String(checkpoint) };
  const retry = { attempts: request.attempts, backoffMs: 20 };
  const stored = {
    install: { allow_new_layout: true },
    metadata: { schedule: JSON.stringify({ checkpoint, layout, retry }) },
  };
  await submitRecord(sim, store, reload, checkpoint, JSON.stringify(stored));
  sim.world.tell(`submitted ${id}: checkpoint ${checkpoint}${inPlace ? " in place" : ""} ${layout} ${coalesce}`);
}

/** To what was committed before, if anything was. */
export async function rollBack(sim: Sim, store: FleetStore, id: string): Promise<void> {
  const previous = (await store.read(FLEET))?.state.previous ?? null;
  const checkpoint = previous === null ? undefined : sim.reloads.get(previous.content)?.checkpoint;
  if (previous === null || checkpoint === undefined) return;
  const { content, weightVersion } = previous;
  const rollback: NewReload = { ...newReload(id), kind: "rollback", content, weightVersion };
  await submitRecord(sim, store, rollback, checkpoint, JSON.stringify({ install: {}, metadata: {} }));
  sim.world.tell(`submitted ${id}: rollback to checkpoint ${checkpoint}`);
}

async function submitRecord(
  sim: Sim,
  store: FleetStore,
  reload: NewReload,
  checkpoint: number,
  request: string,
): Promise<void> {
  const { id, inPlace } = reload;
  sim.reloads.set(id, { id, checkpoint, inPlace, signalled: false, record: null, wroteLive: false });
  await store.transact(FLEET, (draft, context, beside) => {
    if (readRecord(sim.contents, id) !== null) return; // sent again: its answer was lost
    submit(draft, reload, context);
    beside.reloadFields.push({ id, field: "request", value: request });
  });
}

function newReload(id: string): NewReload {
  return {
    id,
    kind: "reload",
    submissionId: id,
    content: id,
    weightVersion: id,
    priority: 0,
    coalesce: "never",
    inPlace: false,
    layoutDigest: null,
    deadlineMs: 60_000,
    healMs: 60_000,
  };
}

/** The refusal of what has ended or is decided is an answer like any other. */
export async function cancelReload(sim: Sim, store: FleetStore, id: string): Promise<void> {
  sim.world.tell(`cancel ${id}`);
  await store.transact(FLEET, (draft, { now }) => cancel(draft, id, now));
}

export async function drainReplica(sim: Sim, store: FleetStore, replica: number): Promise<void> {
  sim.world.tell(`drain replica ${replica}`);
  await store.transact(FLEET, (draft) => drain(draft, replica));
}

export async function undrainReplica(sim: Sim, store: FleetStore, replica: number): Promise<void> {
  sim.world.tell(`undrain replica ${replica}`);
  await store.transact(FLEET, (draft) => undrain(draft, replica));
}

export async function useHooks(sim: Sim, store: FleetStore): Promise<void> {
  const { withHooks, replicas } = sim.options;
  if (withHooks === "no") return;
  const urls = Array.from({ length: replicas }, (_, replica) => String(replica));
  const call = { urls, method: "POST", body: null };
  const hooks = { pause: call, resume: call, timeoutMs: HOOK_TIMEOUT_MS, onFailure: withHooks };
  await store.transact(FLEET, (draft) => setHooks(draft, hooks));
}

/** For the orchestrators. */
export function requestOf(sim: Sim, id: string): StoredReload {
  const fields = sim.contents.fields.get(KEYS.reload(id));
  const record = readRecord(sim.contents, id);
  const request = fields?.get("request");
  if (record === null || request === undefined) throw new LayercastError("not_found", `there is no reload ${id}`);
  return { record, request: JSON.parse(request), plan: null, ranks: {} };
}
