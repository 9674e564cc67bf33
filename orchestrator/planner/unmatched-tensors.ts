// What the model needs and the checkpoint lacks, and the other way round, as errors. What its index names and is not where it says
// is named with its file where the model needs it; a tied head, layers for multi-token prediction or rotary tables nobody misses.

import { quoted } from "../checkpoint/strict-json.js";
import { prefixBeforeKnown } from "../checkpoint/tensor-names.js";
import { LayercastError } from "../contract/errors.js";
import { listed } from "../contract/listed.js";
import type { CheckpointTable } from "../contract/plan.js";
import type { Dimensions, TensorSpec } from "./architectures/family.js";

/**
 * Names of absent tensors that an optional kernel tensor would be filled from, so that none is left out in silence; of the parts'
 * sources the first with one absent tensor counts.
 */
export function absentSources({ parts, experts }: TensorSpec, { absent }: CheckpointTable): string[] {
  if (absent.size === 0) return [];
  return parts.flatMap(({ sources }) => {
    const named = sources.map(({ name }) => namesOf(name, experts).filter((one) => absent.has(one)));
    return named.find((names) => names.length > 0) ?? [];
  });
}

function namesOf(name: string, experts: number | undefined): string[] {
  if (experts === undefined || !name.includes("{expert}")) return [name];
  return Array.from({ length: experts }, (_, expert) => name.replace("{expert}", String(expert)));
}

/** For the missing tensors that the index names; null where it names none of them. */
function absentError(missing: Iterable<string>, { absent, directory }: CheckpointTable): LayercastError | null {
  const names = [...missing].filter((name) => absent.has(name));
  const lost = names.filter((name) => absent.get(name)?.isFileThere === false);
  const [first] = lost.length > 0 ? lost : names;
  if (first === undefined) return null;
  const { file = "" } = absent.get(first) ?? {};
  const those = lost.length > 0 ? lost : names;
  return new LayercastError(
    lost.length > 0 ? "source_not_found" : "tensor_missing",
    `The index in ${directory} puts ${listed(those, NAMED)} into ${file}${those.length > 1 ? " and others" : ""}, ` +
      `${lost.length > 0 ? "which is not there" : "which does not hold it"}. Copy or write the checkpoint again; if the index is of an ` +
      "earlier save, it is stale: remove it.",
    { tensors: those.slice(0, NAMED_IN_DETAILS), count: names.length, file: `${directory}/${file}` },
  );
}

/** What was looked for, and where. */
interface Unmatched {
  model: Dimensions;
  table: CheckpointTable;
}

export function tensorMissing(missing: readonly string[], { model, table }: Unmatched): LayercastError {
  const absent = absentError(missing, table);
  if (absent !== null) return absent;
  const prefix = prefixBefore(missing, table);
  const count = missing.length > COUNTED ? `more than ${COUNTED}` : `${missing.length}`;
  return new LayercastError(
    "tensor_missing",
    `${table.directory} lacks ${count} of the tensors that a ${model.modelType} model with its config has: ${legible(missing)}. ` +
      (prefix === null
        ? "Check that nothing is left out and that the config belongs to it."
        : `It has some of them under the prefix ${quoted(prefix)}: save the state of the model that is wrapped.`),
    { tensors: missing.slice(0, NAMED_IN_DETAILS), count: missing.length, ...(prefix !== null && { prefix }) },
  );
}

/** A prefix that no rule takes off, before one of the missing names. */
function prefixBefore(missing: readonly string[], { tensors }: CheckpointTable): string | null {
  const names = new Set(missing);
  for (const name of tensors.keys()) {
    const prefix = prefixBeforeKnown(name, (known) => names.has(known));
    if (prefix !== null) return prefix;
  }
  return null;
}

export function tensorUnexpected(
  unexpected: readonly string[],
  model: Dimensions,
  table: CheckpointTable,
): LayercastError {
  return new LayercastError(
    "tensor_unexpected",
    `${table.directory} has ${unexpected.length} tensors that a ${model.modelType} model with its config has no ` +
      `place for, or that others already give: ${legible(unexpected)}. Remove them, or correct the config.`,
    { tensors: unexpected.slice(0, NAMED_IN_DETAILS), count: unexpected.length },
  );
}

/** Names of a file's own making may be anything. */
function legible(names: readonly string[]): string {
  const shown = names.map((name) => (PLAIN.test(name) ? name : quoted(name)));
  return listed(shown, NAMED);
}

const COUNTED = 1000;
const NAMED = 10;
const NAMED_IN_DETAILS = 100;
const PLAIN = /^[\w.-]{1,200}$/;
