// JSON read once more, slowly and another way than the program does: by regular expressions over a list of tokens. What the
// program's readers accept is judged by this.

export type SlowValue =
  | { kind: "object"; entries: [name: string, value: SlowValue][] }
  | { kind: "array"; items: SlowValue[] }
  | { kind: "string"; text: string }
  | { kind: "number"; text: string }
  | { kind: "word"; text: string };

const DEEPEST = 32;
const SIGN = /[{}[\]:,]/;
const STRING = /"[^"\\]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\]*)*"/;
const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/;
const WORD = /true|false|null/;
const TOKEN = new RegExp(
  `[ \n\r\t]*(?:${[SIGN, STRING, NUMBER, WORD].map(({ source }) => `(${source})`).join("|")}|$)`,
  "y",
);
const ESCAPE = /\\(?:u([0-9a-fA-F]{4})|(.))/g;
const ESCAPED: Readonly<Record<string, string>> = { b: "\b", f: "\f", n: "\n", r: "\r", t: "\t" };

/** Null: no JSON, nested too deeply, a name twice in one object, or half a surrogate pair. */
export function readSlowJson(text: string): SlowValue | null {
  const tokens = tokensOf(text);
  if (tokens === null) return null;
  const reader = { tokens, at: 0 };
  const value = valueAt(reader, 0);
  return value !== null && reader.at === tokens.length ? value : null;
}

interface Token {
  kind: "sign" | "string" | "number" | "word";
  text: string;
}

function tokensOf(text: string): Token[] | null {
  const tokens: Token[] = [];
  for (let at = 0; at < text.length; ) {
    TOKEN.lastIndex = at;
    const found = TOKEN.exec(text);
    if (found === null) return null;
    const [all, sign, string, number, word] = found;
    at += all.length;
    if (sign !== undefined) tokens.push({ kind: "sign", text: sign });
    else if (number !== undefined) tokens.push({ kind: "number", text: number });
    else if (word !== undefined) tokens.push({ kind: "word", text: word });
    else if (string !== undefined) {
      const plain = unescaped(string.slice(1, -1));
      if (Array.from(string).some((character) => character < " ") || !isWhole(plain)) return null;
      tokens.push({ kind: "string", text: plain });
    }
  }
  return tokens;
}

function unescaped(text: string): string {
  return text.replace(ESCAPE, (_, code: string | undefined, letter: string) =>
    code === undefined ? (ESCAPED[letter] ?? letter) : String.fromCharCode(Number.parseInt(code, 16)),
  );
}

/** No half of a surrogate pair: only whole characters can be written as UTF-8 and read again. */
function isWhole(text: string): boolean {
  return Buffer.from(text, "utf8").toString("utf8") === text;
}

interface Reader {
  tokens: Token[];
  at: number;
}

function valueAt(reader: Reader, depth: number): SlowValue | null {
  const token = reader.tokens[reader.at++];
  if (token === undefined || depth > DEEPEST) return null;
  if (token.kind !== "sign") return { kind: token.kind, text: token.text };
  if (token.text === "[") return arrayAt(reader, depth);
  return token.text === "{" ? objectAt(reader, depth) : null;
}

function arrayAt(reader: Reader, depth: number): SlowValue | null {
  const items: SlowValue[] = [];
  if (taken(reader, "]")) return { kind: "array", items };
  do {
    const item = valueAt(reader, depth + 1);
    if (item === null) return null;
    items.push(item);
  } while (taken(reader, ","));
  return taken(reader, "]") ? { kind: "array", items } : null;
}

function objectAt(reader: Reader, depth: number): SlowValue | null {
  const entries: [string, SlowValue][] = [];
  if (taken(reader, "}")) return { kind: "object", entries };
  do {
    const name = reader.tokens[reader.at++];
    if (name?.kind !== "string" || !taken(reader, ":")) return null;
    if (entries.some(([earlier]) => earlier === name.text)) return null;
    const value = valueAt(reader, depth + 1);
    if (value === null) return null;
    entries.push([name.text, value]);
  } while (taken(reader, ","));
  return taken(reader, "}") ? { kind: "object", entries } : null;
}

function taken(reader: Reader, sign: string): boolean {
  const token = reader.tokens[reader.at];
  if (token?.kind !== "sign" || token.text !== sign) return false;
  reader.at++;
  return true;
}

export function entryOf(value: SlowValue, name: string): SlowValue | undefined {
  return value.kind === "object" ? value.entries.find(([one]) => one === name)?.[1] : undefined;
}
