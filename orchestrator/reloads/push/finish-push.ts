// The end of a push's sending: what is missing is named and nothing closed; else ranks may finalize, and the reload goes on like
// any other.

import { countOf } from "../../contract/count-of.js";
import { elementCount } from "../../contract/dtype.js";
import { LayercastError } from "../../contract/errors.js";
import { joinNames } from "../../contract/join-names.js";
import type { Layout } from "../../contract/plan.js";
import { finishPush } from "../../fleet/reload-transitions.js";
import { isTerminal } from "../../fleet/state.js";
import { faultPoint } from "../../host/fault-point.js";
import { modulesOf } from "../../program/modules.js";
import { type RowRanges, rowCount } from "../../program/row-ranges.js";
import type { ReloadDeps } from "../deps.js";
import { closed, pushOf, requirePush } from "./open-push.js";

/** The same push finished again is finished. */
export async function finishSession(deps: ReloadDeps, reload: string): Promise<void> {
  const { record, request } = await deps.records.read(reload);
  const { partial } = requirePush(record, request.source);
  if (record.push?.finished) return;
  if (isTerminal(record)) throw closed(record);
  const { expected } = await pushOf(deps, reload);
  for (;;) {
    const summary = await deps.sessions.summary(reload);
    const rows = await deps.sessions.rows(reload);
    requireComplete(expected.layout, rows, partial);
    if (await deps.sessions.finish(reload, summary?.accepted ?? 0)) break; // else a bucket came meanwhile: look again
  }
  await faultPoint("orchestrator.finish");
  await deps.store.transact(record.fleet, (draft) => finishPush(draft, reload));
}

function requireComplete(layout: Layout, rows: ReadonlyMap<number, RowRanges>, partial: boolean): void {
  const needed = partial ? touchedTensors(layout, rows) : new Set(layout.checkpointTensors.keys());
  if (needed.size === 0)
    throw new LayercastError("tensor_missing", "no module has been sent; send at least one, or cancel the push", {
      tensors: [],
      count: 0,
    });
  const missing = [...needed].flatMap((index) => {
    const { name, shape } = layout.checkpointTensors[index] ?? { name: "", shape: [] };
    const lacking = rowsOf(shape) - rowCount(rows.get(index) ?? []);
    return lacking > 0
      ? [{ name, words: lacking === rowsOf(shape) ? name : `${countOf(lacking, "row")} of ${name}` }]
      : [];
  });
  if (missing.length === 0) return;
  const shown = joinNames(
    missing.map(({ words }) => words),
    NAMED_IN_SENTENCE,
  );
  throw new LayercastError(
    "tensor_missing",
    `${countOf(missing.length, "tensor")} ${missing.length === 1 ? "has" : "have"} not been sent, or not whole: ${shown}. Send them and finish again`,
    { tensors: missing.slice(0, NAMED_IN_DETAILS).map(({ name }) => name), count: missing.length },
  );
}

/** All tensors of the modules of which something has come. */
function touchedTensors(layout: Layout, rows: ReadonlyMap<number, RowRanges>): Set<number> {
  const touched = modulesOf(layout).filter(({ tensors }) => [...tensors].some((tensor) => rows.has(tensor)));
  return new Set(touched.flatMap(({ tensors }) => [...tensors]));
}

/** Of a tensor's first dimension; a scalar has one. */
function rowsOf(shape: readonly number[]): number {
  return elementCount(shape) === 0 ? 0 : (shape[0] ?? 1);
}

const NAMED_IN_SENTENCE = 10;
const NAMED_IN_DETAILS = 100;
