// Turns a recipe's ignore patterns into the set of checkpoint tensors they name. A pattern covers the whole name, is
// case-sensitive, and `*` is any run of characters. No regular expressions: a pattern is a stranger's, and time must stay
// linear in the name.

import { quoted } from "../checkpoint/strict-json.js";
import { LayercastError } from "../contract/errors.js";

/** `names` sorted, as a checkpoint table has them. A pattern that names nothing is `invalid_request`. */
export function matchIgnored(patterns: readonly string[], names: readonly string[]): Set<string> {
  const ignored = new Set<string>();
  for (const pattern of patterns) {
    const pieces = pattern.split("*");
    let matched = false;
    for (const name of withPrefix(names, pieces[0] ?? "")) {
      if (!matchesPieces(name, pieces)) continue;
      matched = true;
      ignored.add(name);
    }
    if (!matched)
      throw new LayercastError(
        "invalid_request",
        `The ignore pattern ${quoted(pattern)} names no tensor of the checkpoint. It must cover a whole name, such as ` +
          "model.layers.0.mlp.down_proj.weight, with * for any run of characters.",
        { pattern },
      );
  }
  return ignored;
}

/** The first piece is the name's start, the last its end, the others lie between in order; each is taken where first found. */
function matchesPieces(name: string, pieces: readonly string[]): boolean {
  const [first = "", ...rest] = pieces;
  const last = rest.pop();
  if (last === undefined) return name === first;
  const end = name.length - last.length;
  let at = first.length;
  if (at > end || !name.startsWith(first) || !name.endsWith(last)) return false;
  for (const piece of rest) {
    const found = name.indexOf(piece, at);
    if (found < 0 || found + piece.length > end) return false;
    at = found + piece.length;
  }
  return true;
}

/** Those that start with `prefix`: sorted names have them side by side. */
function* withPrefix(names: readonly string[], prefix: string): Generator<string> {
  let low = 0;
  for (let high = names.length; low < high; ) {
    const middle = (low + high) >> 1;
    if ((names[middle] ?? "") < prefix) low = middle + 1;
    else high = middle;
  }
  for (let index = low; index < names.length; index++) {
    const name = names[index] ?? "";
    if (!name.startsWith(prefix)) return;
    yield name;
  }
}
