// Checks of the readers, each with the change of the sources that switches it off. The fuzzing must then break a law.

import type { Patch } from "../../compile.js";

export interface SwitchedOff {
  /** What the check refuses, or what ends without it. */
  check: string;
  patches: Patch[];
}

const FOLDER = "orchestrator/checkpoint";
const HEADER = `${FOLDER}/safetensors-header.ts`;
const INDEX = `${FOLDER}/checkpoint-index.ts`;
const JSON_TEXT = `${FOLDER}/strict-json.ts`;
const CONFIG = `${FOLDER}/model-config.ts`;

function without(check: string, file: string, find: string, put: string): SwitchedOff {
  return { check, patches: [{ file, find, put }] };
}

export const CHECKS: readonly SwitchedOff[] = [
  without("tensors that overlap", HEADER, "if (tensor.offset < end)", "if (false)"),
  without("holes between tensors", HEADER, "if (tensor.offset > end)", "if (false)"),
  without("bytes after the last tensor", HEADER, "if (end !== fileSizeBytes)", "if (end > fileSizeBytes)"),
  {
    check: "bytes past the file's end; either covers the other",
    patches: [
      { file: HEADER, find: "if (end > dataBytes)", put: "if (false)" },
      { file: HEADER, find: "if (end !== fileSizeBytes)", put: "if (end < fileSizeBytes)" },
    ],
  },
  without(
    "a size that is not the shape's",
    HEADER,
    "if (expectedBytes !== end - begin)",
    "if (expectedBytes > end - begin)",
  ),
  without("a shape too large to count", HEADER, "if (!Number.isSafeInteger(elements)) return null;", ""),
  without(
    "a header that the file cannot hold",
    HEADER,
    "if (Number(length) > fileSizeBytes - HEADER_PREFIX_BYTES)",
    "if (false)",
  ),
  without("a header that is not UTF-8", HEADER, "{ fatal: true, ignoreBOM: true }", "{ ignoreBOM: true }"),
  without("a name given twice", JSON_TEXT, "if (object.has(name))", "if (false)"),
  without("half a surrogate pair", JSON_TEXT, "|| /\\p{Surrogate}/u.test(value)", ""),
  without(
    "numbers that are rounded",
    JSON_TEXT,
    "Number.isSafeInteger(value) && String(value) === token",
    "Number.isInteger(value)",
  ),
  without("nesting that takes the whole stack", JSON_TEXT, "const MAX_DEPTH = 32;", "const MAX_DEPTH = 1e9;"),
  without(
    "spaces, which are passed over one by one",
    JSON_TEXT,
    "code !== 0x09) return;\n    cursor.at++;",
    "code !== 0x09) return;",
  ),
  without("a file name that leads out of the directory", INDEX, "!/[/\\\\\\p{Cc}]/u.test(name)", "true"),
  without("NaN before a colon, where a name must be", CONFIG, "(?!\\s*:)", ""),
  without("a size that is no size", CONFIG, "|| value < 1 ||", "||"),
  without("a model type that is no text", CONFIG, 'if (value !== null && typeof value !== "string")', "if (false)"),
];
