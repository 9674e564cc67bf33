// Says in words how the arena that a layout needs differs from the one that stands, by its kernel tensors.

import { joinNames } from "../contract/join-names.js";
import type { ArenaTensor, Layout } from "../contract/plan.js";
import { layoutArena } from "../program/arena-layout.js";

/** Null where rank 0 has the same kernel tensors in both: then other values of the model are in them. */
export function layoutDifference(standing: Layout, needed: Layout): string | null {
  const before = tensorsOf(standing);
  const after = tensorsOf(needed);
  const gone = [...before.keys()].filter((name) => !after.has(name));
  const added = [...after.keys()].filter((name) => !before.has(name));
  const changed = [...after].flatMap(([name, tensor]) => {
    const old = before.get(name);
    return old === undefined || wordsOf(old) === wordsOf(tensor)
      ? []
      : [`${name} (${wordsOf(old)} before, now ${wordsOf(tensor)})`];
  });
  const sentences = [
    gone.length > 0 ? `it does not fill ${joinNames(gone, NAMED)}` : "",
    added.length > 0 ? `it adds ${joinNames(added, NAMED)}` : "",
    changed.length > 0 ? `it changes ${joinNames(changed, NAMED)}` : "",
  ].filter((sentence) => sentence !== "");
  return sentences.length === 0 ? null : sentences.join("; ");
}

function tensorsOf(layout: Layout): Map<string, ArenaTensor> {
  return new Map(layoutArena(layout, 0).tensors.map((tensor) => [tensor.name, tensor]));
}

function wordsOf({ dtype, shape }: ArenaTensor): string {
  return `${dtype} [${shape.join(", ")}]`;
}

const NAMED = 3;
