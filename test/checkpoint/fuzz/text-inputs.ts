// Pieces of JSON text, right and wrong, for inputs of every kind: names, numbers, values, the same thing written another way;
// and changes of finished bytes.

import type { Random } from "../../schedules/random.js";

const PLAIN_NAMES = [
  ..."a b c model.layers.0.mlp.gate_proj.weight lm_head.weight x.safetensors weight_map dtype é 名前 🙂".split(" "),
  ..."__proto__ constructor toString hasOwnProperty ../a.safetensors a/b.safetensors a\\b.safetensors".split(" "),
  ...["", "__metadata__ ", "\u0000", "\ufeff", "\u2028", '"', "\\", "/", "\u007f"],
];

export function anyName(random: Random): string {
  const name = random.pick(PLAIN_NAMES);
  const roll = random.next();
  if (roll < 0.4) return name;
  if (roll < 0.98) return `${name}.${random.between(0, 30)}`;
  return name + "x".repeat(random.between(200, 2_000));
}

const ODD_NUMBERS = [
  '-1 -0 1.0 1e0 01 +1 0x1 1e400 1e15 3.5 .5 1. NaN Infinity "1" null [] {} true',
  "9007199254740991 9007199254740992 9007199254740993 18446744073709551615 18446744073709551616",
  "94906265 94906266 94906267 4294967296 2147483648 99999999999999999999999999",
].flatMap((numbers) => numbers.split(" "));

export const oddNumber = (random: Random) => random.pick(ODD_NUMBERS);

/** Any JSON, some levels deep. */
export function anyJson(random: Random, depth = 0): string {
  const inner = () => anyJson(random, depth + 1);
  const many = <Item>(make: () => Item) => Array.from({ length: random.between(0, 3) }, make);
  const roll = depth > 3 ? 0 : random.next();
  if (roll < 0.3) return random.pick(["null", "true", "false", '""', "0", "1", "7", "-1", "1.5"]);
  if (roll < 0.5) return oddNumber(random);
  if (roll < 0.65) return quote(random, anyName(random));
  if (roll < 0.8) return `[${many(inner).join(",")}]`;
  return `{${many(() => `${quote(random, anyName(random))}:${inner()}`).join(",")}}`;
}

/** As deep as the readers allow, about, or far deeper. */
export function nested(random: Random): string {
  const depth = random.chance(0.9) ? random.between(28, 36) : random.between(100, 20_000);
  const [open, close] = random.chance(0.5) ? ["[", "]"] : ['{"a":', "}"];
  return open.repeat(depth) + (open === "[" ? "" : "1") + (random.chance(0.8) ? close.repeat(depth) : "");
}

/** A string in quotes; one character in many is escaped though it need not be. */
export function quote(random: Random, text: string): string {
  if (random.chance(0.7)) return JSON.stringify(text);
  const letters = Array.from({ length: text.length }, (_, at) => {
    if (random.chance(0.2)) return `\\u${text.charCodeAt(at).toString(16).padStart(4, "0")}`;
    return null;
  });
  if (letters.every((letter) => letter === null)) return JSON.stringify(text);
  const written = letters.map((letter, at) => letter ?? escapedUnit(text.charAt(at)));
  return `"${written.join("")}"`;
}

/** Halves of surrogate pairs stay as they are: together they are a character. */
function escapedUnit(unit: string): string {
  return /[\ud800-\udfff]/.test(unit) ? unit : JSON.stringify(unit).slice(1, -1);
}

export function space(random: Random): string {
  if (random.chance(0.9)) return "";
  return random.chance(0.98)
    ? random.pick([" ", "\n", "\t", "\r\n", "  "])
    : random.pick(["\u00a0", "\f", "\v", "\ufeff"]);
}

const TOKENS = [...'{}[],:"\\-09 \0', "\\u", "\\ud800", "null", "e9", "//"];

/** Some bytes changed, left out, put in, or said twice. */
export function damaged(random: Random, bytes: Uint8Array): Uint8Array {
  let now = Buffer.from(bytes);
  for (let left = random.pick([1, 1, 1, 2, 3, 8]); left > 0; left--) {
    const at = random.between(0, now.length);
    const to = Math.min(now.length, at + random.pick([0, 0, 1, 1, 2, 8, 40]));
    const [head, middle, tail] = [now.subarray(0, at), now.subarray(at, to), now.subarray(to)];
    const put = random.pick([
      () => middle.map((byte) => byte ^ (1 << random.between(0, 7))),
      () => Buffer.alloc(0),
      () => Buffer.from(random.pick(TOKENS)),
      () => Buffer.concat([middle, middle]),
      () => Buffer.from([random.between(0, 255)]),
    ])();
    now = Buffer.concat([head, put, tail]);
  }
  return now;
}
