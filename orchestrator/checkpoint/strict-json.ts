// Turns JSON text from a stranger into a tree that hides nothing: objects are Maps (so no name is special), a name given
// twice is an error, and a number that is not a plain safe integer stays its text. JSON.parse hides the first two and
// rounds the third. A file of 10 MB takes about a tenth of a second.

export type StrictJson = string | number | boolean | null | OtherNumber | StrictJson[] | JsonObject;
export type JsonObject = Map<string, StrictJson>;

/** A number with a fraction, an exponent or more than 53 bits, and minus zero. */
export class OtherNumber {
  readonly text: string;
  constructor(text: string) {
    this.text = text;
  }
}

/** What is wrong with the text and where; whoever knows the file's name makes the sentence. */
export class StrictJsonError extends Error {
  override readonly name = "StrictJsonError";
}

const MAX_DEPTH = 32;

interface Cursor {
  readonly text: string;
  at: number;
}

export function parseStrictJson(text: string): StrictJson {
  const cursor: Cursor = { text, at: 0 };
  const value = readValue(cursor, 0);
  skipWhitespace(cursor);
  if (cursor.at !== text.length) throw problem(cursor, "there is more after the end of the value");
  return value;
}

function readValue(cursor: Cursor, depth: number): StrictJson {
  skipWhitespace(cursor);
  if (depth > MAX_DEPTH) throw problem(cursor, `the nesting is deeper than ${MAX_DEPTH}`);
  switch (cursor.text.charCodeAt(cursor.at)) {
    case OPEN_BRACE:
      return readObject(cursor, depth);
    case OPEN_BRACKET:
      return readArray(cursor, depth);
    case QUOTE:
      return readString(cursor);
    default:
      return readWord(cursor, "true", true) ?? readWord(cursor, "false", false) ?? readNullOrNumber(cursor);
  }
}

function readObject(cursor: Cursor, depth: number): JsonObject {
  const object: JsonObject = new Map();
  cursor.at++;
  skipWhitespace(cursor);
  if (skip(cursor, CLOSE_BRACE)) return object;
  for (;;) {
    skipWhitespace(cursor);
    if (cursor.text.charCodeAt(cursor.at) !== QUOTE) throw problem(cursor, "a name in quotes is expected");
    const name = readString(cursor);
    if (object.has(name)) throw problem(cursor, `the name ${quoted(name)} is given twice`);
    skipWhitespace(cursor);
    if (!skip(cursor, COLON)) throw problem(cursor, "a colon is expected");
    object.set(name, readValue(cursor, depth + 1));
    skipWhitespace(cursor);
    if (skip(cursor, CLOSE_BRACE)) return object;
    if (!skip(cursor, COMMA)) throw problem(cursor, "a comma or a closing brace is expected");
  }
}

function readArray(cursor: Cursor, depth: number): StrictJson[] {
  const array: StrictJson[] = [];
  cursor.at++;
  skipWhitespace(cursor);
  if (skip(cursor, CLOSE_BRACKET)) return array;
  for (;;) {
    array.push(readValue(cursor, depth + 1));
    skipWhitespace(cursor);
    if (skip(cursor, CLOSE_BRACKET)) return array;
    if (!skip(cursor, COMMA)) throw problem(cursor, "a comma or a closing bracket is expected");
  }
}

// The loop finds the closing quote; JSON.parse knows the escapes, and which characters must be escaped.
function readString(cursor: Cursor): string {
  const { text, at: start } = cursor;
  let plain = true;
  for (let at = start + 1; at < text.length; at++) {
    const code = text.charCodeAt(at);
    if (code === QUOTE) {
      cursor.at = at + 1;
      return plain ? text.slice(start + 1, at) : unescaped(cursor, text.slice(start, at + 1));
    }
    if (code === BACKSLASH) {
      plain = false;
      at++;
    } else if (code < SPACE) {
      cursor.at = at;
      throw problem(cursor, "a string has a control character that is not escaped");
    }
  }
  throw problem(cursor, "a string has no end");
}

function unescaped(cursor: Cursor, literal: string): string {
  let value: unknown;
  try {
    value = JSON.parse(literal);
  } catch {
    throw problem(cursor, "a string has an escape that does not exist");
  }
  if (typeof value !== "string" || /\p{Surrogate}/u.test(value))
    throw problem(cursor, "a string has half a surrogate pair");
  return value;
}

function readWord<Value>(cursor: Cursor, word: string, value: Value): Value | undefined {
  if (!cursor.text.startsWith(word, cursor.at)) return undefined;
  cursor.at += word.length;
  return value;
}

function readNullOrNumber(cursor: Cursor): null | number | OtherNumber {
  if (readWord(cursor, "null", true)) return null;
  NUMBER.lastIndex = cursor.at;
  const token = NUMBER.exec(cursor.text)?.[0];
  if (token === undefined) throw problem(cursor, "a value is expected");
  cursor.at += token.length;
  const value = Number(token);
  return Number.isSafeInteger(value) && String(value) === token ? value : new OtherNumber(token);
}

function skipWhitespace(cursor: Cursor): void {
  for (;;) {
    const code = cursor.text.charCodeAt(cursor.at);
    if (code !== SPACE && code !== 0x0a && code !== 0x0d && code !== 0x09) return;
    cursor.at++;
  }
}

function skip(cursor: Cursor, code: number): boolean {
  if (cursor.text.charCodeAt(cursor.at) !== code) return false;
  cursor.at++;
  return true;
}

function problem(cursor: Cursor, what: string): StrictJsonError {
  return new StrictJsonError(`${what} at character ${cursor.at}`);
}

/** A stranger's text in a sentence: quoted, escaped and cut. */
export function quoted(text: string): string {
  return JSON.stringify(text.length > 200 ? `${text.slice(0, 200)}…` : text);
}

/** A stranger's value in a sentence, as JSON: texts as `quoted`, lists with their first values, of an object that it is one. */
export function shown(value: unknown, depth = 0): string {
  if (value === undefined) return "missing";
  if (typeof value === "string") return quoted(value);
  if (!Array.isArray(value)) return typeof value === "object" && value !== null ? "an object" : String(value);
  if (depth === SHOWN_DEPTH) return "[…]";
  const items = value.slice(0, SHOWN_ITEMS).map((item: unknown) => shown(item, depth + 1));
  return `[${[...items, ...(value.length > SHOWN_ITEMS ? ["…"] : [])].join(", ")}]`;
}

const SHOWN_ITEMS = 4;
const SHOWN_DEPTH = 2;
const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const SPACE = 0x20;
const COMMA = 0x2c;
const COLON = 0x3a;
const OPEN_BRACE = 0x7b;
const CLOSE_BRACE = 0x7d;
const OPEN_BRACKET = 0x5b;
const CLOSE_BRACKET = 0x5d;
