// A push that may be sent buckets, with what its buckets are held against.

import type { RequestDType } from "../../contract/dtype.js";
import { LayercastError } from "../../contract/errors.js";
import type { Layout } from "../../contract/plan.js";
import type { PushSettings } from "../../contract/push.js";
import { keepLast } from "../../fleet/keep-last.js";
import { activeReload, type FleetState, isTerminal, type ReloadRecord } from "../../fleet/state.js";
import { skipRuleOf } from "../../planner/declared-table.js";
import type { ReloadDeps } from "../deps.js";
import { pendingReason } from "../view.js";
import type { Expected } from "./bucket-pieces.js";
import { declaredCheckpoint, loadPushModel } from "./push-model.js";

export interface OpenPush {
  record: ReloadRecord;
  /** Of the record's fleet, as it was just now. */
  state: FleetState;
  settings: PushSettings;
  expected: Expected;
}

/** Throws `backpressure` while it is not open yet, `session_closed` when it has ended. */
export async function pushOf(deps: ReloadDeps, reload: string): Promise<OpenPush> {
  const { record, request } = await deps.records.read(reload);
  const settings = requirePush(record, request.source);
  if (isTerminal(record)) throw closed(record);
  const known = await deps.store.read(record.fleet);
  const active = known === null ? null : activeReload(known.state);
  const waitsForEngines = active?.inPlace === true && active.times.signalled === null;
  if (known === null || active?.id !== reload || active.state === "planning" || waitsForEngines) {
    await deps.sessions.touch(reload); // a trainer that is told to wait is alive
    const reason = known === null ? null : pendingReason(record, known.state, known.context);
    throw new LayercastError(
      "backpressure",
      `reload ${reload} takes no buckets yet: it is ${record.state} (${reason ?? "about to go on"}); send the bucket again`,
      { state: record.state },
    );
  }
  return { record: active, state: known.state, settings, expected: await expectedBy(deps, reload, request.dtype) };
}

export function requirePush(record: ReloadRecord, source: { kind: string } | null): PushSettings {
  if (source?.kind === "push" && record.kind === "reload") return source as PushSettings;
  throw new LayercastError(
    "invalid_request",
    `reload ${record.id} is not a push: its source names files, so it takes no buckets`,
    { reload: record.id },
  );
}

/** Those of the last few pushes: every bucket asks for its own. */
const known = keepLast<Expected>(4);

async function expectedBy({ redis, plans }: ReloadDeps, reload: string, dtype: RequestDType): Promise<Expected> {
  const before = known.get(reload);
  if (before !== undefined) return before;
  const [{ layout, source }, model] = await Promise.all([plans.load(reload), loadPushModel(redis, reload)]);
  const byName = new Map(layout.checkpointTensors.map(({ name }, index) => [name, index]));
  const skipped = skipRuleOf(declaredCheckpoint(model).config);
  const isListed = model.tensors !== null;
  const goesToF32 = tensorsOfF32(layout);
  const mayDiffer = (tensor: number) => !isListed && (dtype !== "auto" || goesToF32.has(tensor));
  return known.set(reload, { layout, dtypes: source.dtype, mayDiffer, byName, skipped });
}

/** What goes straight to F32, whatever it is on disk: the router's correction bias. */
function tensorsOfF32({ layers }: Layout): ReadonlySet<number> {
  const kernels = layers.flatMap(({ kernelTensors }) => kernelTensors);
  const straight = kernels.filter(({ dtype, roundTo }) => dtype === "F32" && roundTo === null);
  return new Set(straight.flatMap(({ parts }) => parts.flatMap(({ tensors }) => tensors)));
}

/** A push that failed says why: whoever sends its buckets may look at nothing else. */
export function closed(record: ReloadRecord): LayercastError {
  const { id, state, error } = record;
  const what = isTerminal(record) ? state : "finished";
  const why = error === null ? "" : ` (${error.code}: ${error.message})`;
  const sentence = `reload ${id} is ${what}${why} and takes no buckets; open another push`;
  return new LayercastError("session_closed", sentence, { state, ...(error === null ? {} : { error }) });
}
