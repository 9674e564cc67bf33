// Takes the wrappers off tensor names: what DistributedDataParallel, torch.compile, FSDP, PEFT and the like put before or into the
// names of a model's own tensors. A prefix counts where all names have it; where only some do, the names are refused with it.

import { LayercastError } from "../contract/errors.js";
import type { SourceWarning } from "../contract/plan.js";
import { quoted } from "./strict-json.js";

export interface PlainNames {
  /** The name as a model has it that is not wrapped. */
  plainOf(name: string): string;
  /** The rules that were followed; null: every name is plain. */
  warning: SourceWarning | null;
}

/** `where`: what sentences call the names' owner, such as the checkpoint's directory. */
export function unwrapNames(names: Iterable<string>, where: string): PlainNames {
  const all = [...names];
  const adapter = all.find((name) => ADAPTER.test(name));
  if (adapter !== undefined) throw adapterNames(adapter, where);
  const prefix = sharedPrefix(all, where);
  const inside = (name: string) => name.slice(prefix.length).replaceAll(INNER, "$1");
  const hasInner = all.find((name) => inside(name) !== name.slice(prefix.length));
  const [inner = ""] = hasInner?.slice(prefix.length).match(INNER) ?? [];
  const lacksModel = isBare(all.map(inside), where);
  const rules = [
    ...(prefix === "" ? [] : [`${quoted(prefix)} is taken off each name`]),
    ...(hasInner === undefined ? [] : [`${quoted(inner)} is taken out of names`]),
    ...(lacksModel ? [`${quoted(MODEL)} is put before names`] : []),
  ];
  const plainOf = (name: string) => {
    const plain = name.startsWith(prefix) ? inside(name) : name;
    return lacksModel && BARE.test(plain) ? MODEL + plain : plain;
  };
  requireDifferent(all, plainOf, where);
  const [first = ""] = all;
  const example = hasInner ?? all.find((name) => plainOf(name) !== name) ?? first;
  return { plainOf, warning: rules.length === 0 ? null : namesUnwrapped(where, rules, example, plainOf(example)) };
}

/** What stands before a known name in `name`, such as `policy.` in `policy.model.norm.weight`; null: it ends with no known one. */
export function prefixBeforeKnown(name: string, isKnown: (name: string) => boolean): string | null {
  for (let dot = name.indexOf("."); dot >= 0; dot = name.indexOf(".", dot + 1))
    if (isKnown(name.slice(dot + 1))) return name.slice(0, dot + 1);
  return null;
}

/** The wrappers that every name begins with. */
function sharedPrefix(names: readonly string[], where: string): string {
  const [first] = names;
  if (first === undefined) return "";
  const shared = prefixOf(first);
  const other = names.find((name) => prefixOf(name) !== shared);
  if (other === undefined) return shared;
  const [wrapped, bare] = prefixOf(other).length > shared.length ? [other, first] : [first, other];
  throw mixedNames(where, prefixOf(wrapped), wrapped, bare);
}

function prefixOf(name: string): string {
  return PREFIX.exec(name)?.[0] ?? "";
}

/** Whether these are the names of a base model, without the `model.` that it has within the whole. */
function isBare(names: readonly string[], where: string): boolean {
  const bare = names.find((name) => BARE.test(name));
  if (bare === undefined || names.some((name) => name.startsWith("tok_embeddings."))) return false;
  const whole = names.find((name) => name.startsWith(MODEL));
  if (whole !== undefined) throw mixedNames(where, MODEL, whole, bare);
  return true;
}

function requireDifferent(names: readonly string[], plainOf: (name: string) => string, where: string): void {
  const known = new Map<string, string>();
  for (const name of names) {
    const plain = plainOf(name);
    const before = known.get(plain);
    if (before !== undefined && before !== name)
      throw new LayercastError(
        "tensor_unexpected",
        `${where} has ${quoted(before)} and ${quoted(name)}, which are both ${quoted(plain)} without their wrappers. Keep one of the two.`,
        { tensors: [before, name], count: 2 },
      );
    known.set(plain, name);
  }
}

function mixedNames(where: string, prefix: string, wrapped: string, bare: string): LayercastError {
  return new LayercastError(
    "tensor_unexpected",
    `${where} has names with the prefix ${quoted(prefix)}, such as ${quoted(wrapped)}, and names without it, such as ${quoted(bare)}. ` +
      "All must have it, or none: save the state of the model that is wrapped.",
    { tensors: [wrapped, bare], count: 2, prefix },
  );
}

function adapterNames(name: string, where: string): LayercastError {
  return new LayercastError(
    "tensor_unexpected",
    `${where} has tensors of an adapter, such as ${quoted(name)}, which are not loaded. Merge the adapter into its base model ` +
      "(merge_and_unload), and save or send the result.",
    { tensors: [name], count: 1 },
  );
}

function namesUnwrapped(where: string, rules: readonly string[], name: string, plain: string): SourceWarning {
  return {
    code: "names_unwrapped",
    message: `The tensor names of ${where} are those of a wrapped model: ${rules.join(", ")}. So ${quoted(name)} is ${quoted(plain)}.`,
    details: { rules, name, plain },
  };
}

const MODEL = "model.";
/** `model.` is one where what follows begins again with what a whole model has at its top. */
const PREFIX =
  /^(?:module\.|_orig_mod\.|_forward_module\.|_fsdp_wrapped_module\.|_fpw_module\.|_checkpoint_wrapped_module\.|base_model\.model\.|model\.(?=model\.|lm_head\.))+/;
/** Of single modules, which are wrapped where others are not. */
const INNER =
  /(^|\.)((?:(?:_orig_mod|_fsdp_wrapped_module|_fpw_module|_checkpoint_wrapped_module|_forward_module|base_layer)\.)+)/g;
const BARE = /^(?:language_model\.)?(?:embed_tokens|layers|norm)\./;
/** Of LoRA, DoRA and what PEFT keeps beside a module that it replaces. */
const ADAPTER =
  /(?:^|\.)(?:lora_(?:A|B|embedding_A|embedding_B|magnitude_vector|a|b)|modules_to_save|original_module)(?:\.|$)/;
