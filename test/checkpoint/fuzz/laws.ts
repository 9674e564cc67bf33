// What must hold of every input, whatever it is: the reader ends; it throws nothing but a LayercastError with one of its own
// codes and a sentence of bearable length; and what it accepts is what the slow reader finds, as what it refuses is refused there.

import { parseCheckpointIndex } from "../../../orchestrator/checkpoint/checkpoint-index.js";
import { type ModelConfig, parseModelConfig } from "../../../orchestrator/checkpoint/model-config.js";
import { parseSafetensorsHeader, readHeaderLength } from "../../../orchestrator/checkpoint/safetensors-header.js";
import { type ErrorCode, LayercastError } from "../../../orchestrator/contract/errors.js";
import type { LayerSpec } from "../../../orchestrator/planner/architectures/family.js";
import { familyOf, layersOf, readDimensions, skipReason } from "../../../orchestrator/planner/architectures/index.js";
import type { Random } from "../../schedules/random.js";
import { type HeaderInput, headerInput } from "./header-inputs.js";
import { configInput, indexInput } from "./other-inputs.js";
import { readHeaderSlowly, readIndexSlowly, readLengthSlowly, readPythonSlowly } from "./slow-readers.js";

export interface Verdict {
  accepted: boolean;
  /** Null: every law holds. */
  broken: string | null;
}

export interface Target {
  name: string;
  /** Of a hundred inputs. */
  share: number;
  /** The input, as it can be put into a test, and how to judge it. */
  next(random: Random): { shown: string; judge(): Verdict };
}

const LONGEST_SENTENCE = 2_000;
const FILE = "/ckpt/file";

type Outcome<Value> = { value: Value } | { broken: string } | { refused: LayercastError };

function outcomeOf<Value>(codes: readonly ErrorCode[], read: () => Value): Outcome<Value> {
  try {
    return { value: read() };
  } catch (error) {
    if (!(error instanceof LayercastError)) return { broken: `threw ${String(error).slice(0, 500)}` };
    if (!codes.includes(error.code)) return { broken: `threw ${error.code}: ${error.message.slice(0, 500)}` };
    if (error.message.length > LONGEST_SENTENCE) return { broken: `says ${error.message.length} characters` };
    return error.message.includes(FILE) || error.code !== "checkpoint_invalid"
      ? { refused: error }
      : { broken: `does not name the file: ${error.message.slice(0, 500)}` };
  }
}

/** Both accept and find the same, or both refuse. */
function compare<Value>(outcome: Outcome<Value>, expected: unknown, seenAs: (value: Value) => unknown): Verdict {
  if ("broken" in outcome) return { accepted: false, broken: outcome.broken };
  if ("refused" in outcome) {
    return { accepted: false, broken: expected === null ? null : `refuses what is right: ${outcome.refused.message}` };
  }
  if (expected === null) return { accepted: true, broken: "accepts what is wrong" };
  const [found, wanted] = [JSON.stringify(seenAs(outcome.value)), JSON.stringify(expected)];
  return { accepted: true, broken: found === wanted ? null : `reads ${found}, there is ${wanted}` };
}

function judgeHeader({ bytes, fileSizeBytes }: HeaderInput): Verdict {
  // As much is read of a file as its length says, so that is judged by itself too.
  const length = outcomeOf(["checkpoint_invalid"], () => readHeaderLength(bytes.subarray(0, 8), fileSizeBytes, FILE));
  const slowLength = readLengthSlowly(bytes, fileSizeBytes);
  const ofLength = compare(length, slowLength === null ? null : Number(slowLength), (value) => value);
  if (ofLength.broken !== null) return ofLength;
  const outcome = outcomeOf(["checkpoint_invalid"], () => parseSafetensorsHeader(bytes, fileSizeBytes, FILE));
  const slow = readHeaderSlowly(bytes, fileSizeBytes);
  const expected = slow && {
    dataOffset: Number(slow.dataOffset),
    metadata: slow.metadata,
    tensors: slow.tensors
      .map(({ name, dtype, shape, begin, end }) => {
        const place = { offset: Number(slow.dataOffset + begin), sizeBytes: Number(end - begin) };
        return { name, dtype, shape: shape.map(Number), ...place };
      })
      .sort(byName),
  };
  return compare(outcome, expected, ({ dataOffset, metadata, tensors }) => {
    const inOrder = tensors.every(({ offset }, at) => offset >= (tensors[at - 1]?.offset ?? 0));
    return { dataOffset, metadata: [...metadata], tensors: inOrder ? [...tensors].sort(byName) : "not in order" };
  });
}

function byName(one: { name: string }, other: { name: string }): number {
  return one.name < other.name ? -1 : 1;
}

function judgeIndex(bytes: Uint8Array): Verdict {
  const outcome = outcomeOf(["checkpoint_invalid"], () => parseCheckpointIndex(bytes, FILE));
  return compare(outcome, readIndexSlowly(bytes), (weightMap) => [...weightMap]);
}

const LARGEST_SIZE = 2 ** 31 - 1;
const LAYERS_LOOKED_AT = 4;
const NAMES_TO_SKIP = ["", "model.layers.99.x", "lm_head.weight", "a.rotary_emb.inv_freq", "vision_tower.x"];

function judgeConfig(text: string): Verdict {
  const outcome = outcomeOf(["checkpoint_invalid", "unsupported_architecture"], () => {
    const config = parseModelConfig(text, FILE);
    const family = familyOf(config);
    const model = readDimensions(config, family);
    const layers: LayerSpec[] = [];
    for (const layer of layersOf(family, model)) if (layers.push(layer) === LAYERS_LOOKED_AT) break;
    for (const name of NAMES_TO_SKIP) skipReason(name, family, model);
    return { config, model, layers };
  });
  if ("broken" in outcome) return { accepted: false, broken: outcome.broken };
  const fields = readPythonSlowly(text);
  if ("refused" in outcome) {
    const isWrong = fields !== null && outcome.refused.message.includes("is not JSON");
    return { accepted: false, broken: isWrong ? `refuses what is right: ${outcome.refused.message}` : null };
  }
  if (fields === null) return { accepted: true, broken: "accepts what is wrong" };
  const { config, model, layers } = outcome.value;
  const wrongSize = Object.entries(model).find(([, value]) => typeof value === "number" && !isSize(value));
  const broken =
    wrongConfig(fields, config) ??
    (wrongSize === undefined ? null : `takes ${wrongSize.join(" ")} for a size`) ??
    layers.map(wrongLayer).find((wrong) => wrong !== null);
  return { accepted: true, broken: broken ?? null };
}

function isSize(value: number): boolean {
  return Number.isInteger(value) && value >= 1 && value <= LARGEST_SIZE;
}

/** What a config says of itself is looked up in its fields, as they were read a second time. */
function wrongConfig(fields: Record<string, unknown>, config: ModelConfig): string | null {
  for (const name of new Set([...Object.keys(fields), ...Object.keys(config.fields)])) {
    const [found, wanted] = [config.fields[name], fields[name]];
    // Fields may be nested deeper than functions can follow that call themselves.
    const isSame = typeof wanted === "object" ? typeof found === "object" : Object.is(found, wanted);
    if (!isSame) return `reads ${String(found)} for ${name}, there is ${String(wanted)}`;
  }
  const own = (name: string) => (Object.hasOwn(fields, name) ? (fields[name] ?? null) : null);
  const [architecture = null] = (own("architectures") ?? []) as unknown[];
  if (Array.isArray(fields) || config.architecture !== architecture)
    return `takes ${config.architecture} for ${architecture}`;
  const texts = [config.architecture, config.modelType].filter((text) => text !== null);
  if (texts.some((text) => typeof text !== "string")) return `takes ${texts} for names`;
  return config.modelType === own("model_type") ? null : `takes ${config.modelType} for ${own("model_type")}`;
}

/** Names differ, and every shape is made of whole numbers. */
function wrongLayer({ name, tensors }: LayerSpec): string | null {
  const names = new Set(tensors.map((tensor) => tensor.name));
  if (names.size !== tensors.length) return `${name} has two tensors of one name`;
  const parts = tensors.flatMap((tensor) => tensor.parts);
  const numbers = parts.flatMap(({ rows, cols, sources }) => [
    rows,
    cols,
    ...sources.flatMap(({ shapes }) => shapes.flat()),
  ]);
  const odd = numbers.find((number) => !Number.isInteger(number) || number < 0);
  return odd === undefined ? null : `${name} wants a size of ${odd}`;
}

function knownNames() {
  const outcome = outcomeOf(["unsupported_architecture"], () =>
    familyOf({ file: FILE, architecture: "", modelType: null, fields: {} }),
  );
  const known = "refused" in outcome ? outcome.refused.details.known : [];
  return { architectures: known as string[], modelTypes: MODEL_TYPES };
}

const MODEL_TYPES = [
  ...[
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "deepseek_v2",
    "deepseek_v3",
    "kimi_k2",
  ],
  ...["gemma2", "gemma3", "gemma3_text", "phi3"],
];
const KNOWN = knownNames();

const base64 = (bytes: Uint8Array) => Buffer.from(bytes).toString("base64");

export const TARGETS: readonly Target[] = [
  {
    name: "header",
    share: 65,
    next(random) {
      const input = headerInput(random);
      return { shown: `${base64(input.bytes)} of ${input.fileSizeBytes} bytes`, judge: () => judgeHeader(input) };
    },
  },
  {
    name: "index",
    share: 15,
    next(random) {
      const bytes = indexInput(random);
      return { shown: base64(bytes), judge: () => judgeIndex(bytes) };
    },
  },
  {
    name: "config",
    share: 20,
    next(random) {
      const text = configInput(random, KNOWN);
      return { shown: text, judge: () => judgeConfig(text) };
    },
  },
];
