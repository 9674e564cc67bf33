// Turns config.json into a value whose fields can be asked for by name and are checked when they are. Which fields a model
// needs is known by its family (planner/architectures); what the file is, and what a field may hold, is known here.

import { LayercastError } from "../contract/errors.js";
import { shown } from "./strict-json.js";

export interface ModelConfig {
  /** Path of config.json, for error messages. */
  file: string;
  /** `architectures[0]`, such as `LlamaForCausalLM`; null when the file does not say. */
  architecture: string | null;
  /** `model_type`, such as `llama`; null when the file does not say. */
  modelType: string | null;
  fields: Readonly<Record<string, unknown>>;
}

export function parseModelConfig(text: string, file: string): ModelConfig {
  let fields: unknown;
  try {
    fields = parsePythonJson(text);
  } catch (cause) {
    throw new LayercastError("checkpoint_invalid", `${file} is not JSON: ${String(cause)}.`, { file }, cause);
  }
  if (!isRecord(fields)) throw new LayercastError("checkpoint_invalid", `${file} is not a JSON object.`, { file });
  const config = { file, architecture: null, modelType: null, fields };
  return { ...config, architecture: readArchitecture(config), modelType: readText(config, "model_type") };
}

/**
 * JSON as Python's `json` writes it: with NaN, Infinity and -Infinity where a number has no other form. Each becomes the text of its
 * name, so a field that nobody needs may be one, and where a number is needed it is refused like any other text.
 */
function parsePythonJson(text: string): unknown {
  if (!/NaN|Infinity/.test(text)) return JSON.parse(text);
  return JSON.parse(text.replace(STRING_OR_NOT_FINITE, (token) => (token.startsWith('"') ? token : `"${token}"`)));
}

/** The config nested under `name`, which says before the outer one what it says; null: there is none. */
export function nestedConfig(config: ModelConfig, name: string): ModelConfig | null {
  const nested = field(config, name) ?? null;
  if (nested === null) return null;
  if (!isRecord(nested)) throw wrongField(config, name, "an object");
  const inner = { ...config, fields: { ...config.fields, ...nested } };
  return { ...inner, modelType: readText(inner, "model_type") };
}

function readArchitecture(config: ModelConfig): string | null {
  const architectures = field(config, "architectures") ?? [];
  if (!Array.isArray(architectures)) throw wrongField(config, "architectures", "a list of names");
  const first: unknown = architectures[0] ?? null;
  if (first !== null && typeof first !== "string") throw wrongField(config, "architectures", "a list of names");
  return first;
}

function readText(config: ModelConfig, name: string): string | null {
  const value = field(config, name) ?? null;
  if (value !== null && typeof value !== "string") throw wrongField(config, name, "a string");
  return value;
}

/** A size: a whole number from 1 to 2^31 - 1. `fallback` is for a field that is absent or null; without one it is required. */
export function readSize(config: ModelConfig, name: string, fallback?: number): number {
  const value = field(config, name) ?? fallback;
  if (typeof value !== "number" || !Number.isInteger(value) || value < 1 || value > MAX_SIZE)
    throw wrongField(config, name, `a whole number from 1 to ${MAX_SIZE}`);
  return value;
}

/** A size that a model may do without. */
export function readSizeOrNull(config: ModelConfig, name: string): number | null {
  return (field(config, name) ?? null) === null ? null : readSize(config, name);
}

/** As a size, but it may be 0. */
export function readCount(config: ModelConfig, name: string, fallback: number): number {
  return field(config, name) === 0 ? 0 : (readSizeOrNull(config, name) ?? fallback);
}

/** Indexes of layers; none where the field is absent. */
export function readIndexes(config: ModelConfig, name: string): number[] {
  const value = field(config, name) ?? [];
  const isIndex = (index: unknown) => typeof index === "number" && Number.isInteger(index) && index >= 0;
  if (!Array.isArray(value) || !value.every(isIndex)) throw wrongField(config, name, "a list of layer indexes");
  return value;
}

export function readFlag(config: ModelConfig, name: string, fallback: boolean): boolean {
  const value = field(config, name) ?? fallback;
  if (typeof value !== "boolean") throw wrongField(config, name, "true or false");
  return value;
}

function field(config: ModelConfig, name: string): unknown {
  return Object.hasOwn(config.fields, name) ? config.fields[name] : undefined;
}

function wrongField(config: ModelConfig, name: string, expected: string): LayercastError {
  const value = field(config, name);
  return new LayercastError(
    "checkpoint_invalid",
    `${config.file} must give ${name} as ${expected}; it is ${shown(value)}. Correct it.`,
    { file: config.file, field: name },
  );
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A name before a colon is no value. */
const STRING_OR_NOT_FINITE = /"[^"\\]*(?:\\.[^"\\]*)*"|(?:-?Infinity|NaN)(?!\s*:)/gs;
const MAX_SIZE = 2 ** 31 - 1;
