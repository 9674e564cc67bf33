// What the model needs and the checkpoint lacks, and the other way round, as errors. What its index names and is not where it says
// is named with its file where the model needs it; a tied head, layers for multi-token prediction or rotary tables nobody misses.

import { quoted } from "../checkpoint/strict-json.js";
import { prefixBeforeKnown } from "../checkpoint/tensor-names.js";
import { countOf } from "../contract/count-of.js";
import { LayercastError } from "../contract/errors.js";
import { joinNames } from "../contract/join-names.js";
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
  const named = [...missing].filter((name) => absent.has(name));
  const lost = named.filter((name) => absent.get(name)?.isFileThere === false);
  const names = lost.length > 0 ? lost : named;
  if (names.length === 0) return null;
  const files = [...new Set(names.map((name) => absent.get(name)?.file ?? ""))];
  const isMany = files.length > 1;
  const fault =
    lost.length > 0 ? `which ${isMany ? "are" : "is"} not there` : `which ${isMany ? "do" : "does"} not hold it`;
  return new LayercastError(
    lost.length > 0 ? "source_not_found" : "tensor_missing",
    `The index in ${directory} puts ${joinNames(names, 3)} into ${joinNames(files, 3)}, ${fault}, and the model needs it. ` +
      "Copy or write the checkpoint again; if the index is of an earlier save, it is stale: remove it.",
    { tensors: names.slice(0, NAMED_IN_DETAILS), count: named.length, file: `${directory}/${files[0]}` },
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
    `${table.directory} has ${countOf(unexpected.length, "tensor")} that a ${model.modelType} model with its config has no ` +
      `place for, or that others already give: ${legible(unexpected)}. Remove them, or correct the config.`,
    { tensors: unexpected.slice(0, NAMED_IN_DETAILS), count: unexpected.length },
  );
}

/** Names of a file's own making may be anything. */
function legible(names: readonly string[]): string {
  const shown = names.map((name) => (PLAIN.test(name) ? name : quoted(name)));
  return joinNames(shown, NAMED);
}

const COUNTED = 1000;
/** In a sentence; the details have more. */
const NAMED = 10;
const NAMED_IN_DETAILS = 100;
const PLAIN = /^[\w.-]{1,200}$/;
