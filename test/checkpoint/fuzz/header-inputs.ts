// First bytes of safetensors files: right ones, and ones in which one thing or a few have gone wrong.

import type { Random } from "../../schedules/random.js";
import { anyJson, anyName, damaged, nested, oddNumber, quote, space } from "./text-inputs.js";

export interface HeaderInput {
  bytes: Uint8Array;
  fileSizeBytes: number;
}

/** A header as it is to be written; every number is text already, so that it may be none. */
interface Draft {
  tensors: { name: string; dtype: string; shape: string[]; offsets: string[]; more: string }[];
  /** Entries besides. */
  others: string[];
  dataBytes: number;
  lengthOff: number;
  after: string;
}

const DTYPES_BY_BITS: readonly [bits: number, dtypes: string][] = [
  [4, "F4"],
  [6, "F6_E2M3 F6_E3M2"],
  [8, "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ"],
  [16, "I16 U16 F16 BF16"],
  [32, "I32 U32 F32"],
  [64, "C64 F64 I64 U64"],
];
const BITS = new Map(
  DTYPES_BY_BITS.flatMap(([bits, dtypes]) => dtypes.split(" ").map((dtype) => [dtype, bits] as const)),
);
const DTYPES = [...BITS.keys()];
const bitsOf = (dtype: string) => BITS.get(dtype) ?? 0;

export function headerInput(random: Random): HeaderInput {
  const draft = rightDraft(random);
  for (let left = random.pick([0, 0, 1, 1, 1, 2, 3]); left > 0; left--) random.pick(MISTAKES)(draft, random);
  const { bytes, fileSizeBytes } = written(draft, random);
  const changed = random.chance(0.25) ? damaged(random, bytes) : bytes;
  // The reader is given the header alone, the header and some of what follows, or too little.
  const extra = random.chance(0.2) ? random.between(1, 9) : 0;
  const given = random.chance(0.03) ? changed.subarray(0, random.between(0, changed.length)) : changed;
  return { bytes: Buffer.concat([given, Buffer.alloc(Math.min(extra, draft.dataBytes))]), fileSizeBytes };
}

function rightDraft(random: Random): Draft {
  const names = new Set(Array.from({ length: random.pick([0, 1, 2, 2, 3, 3, 5, 9]) }, () => anyName(random)));
  let end = 0;
  const tensors = [...names].map((name) => {
    const dtype = random.pick(DTYPES);
    const shape = anyShape(random, dtype);
    const begin = end;
    end += (shape.reduce((product, size) => product * size, 1) * bitsOf(dtype)) / 8;
    return { name, dtype: quote(random, dtype), shape: shape.map(String), offsets: [begin, end].map(String), more: "" };
  });
  const metadata = random.chance(0.3) ? [`"__metadata__":{${random.chance(0.5) ? '"format":"pt"' : ""}}`] : [];
  // The order of the entries says nothing.
  for (let at = tensors.length - 1; at > 0; at--) swap(tensors, at, random.between(0, at));
  return { tensors, others: metadata, dataBytes: end, lengthOff: 0, after: random.chance(0.3) ? "   " : "" };
}

function anyShape(random: Random, dtype: string): number[] {
  const large = () => 2 ** random.between(10, 20);
  const size = () => (random.chance(0.05) ? 0 : random.chance(0.03) ? large() : random.between(1, 6));
  const shape = Array.from({ length: random.pick([0, 1, 1, 2, 2, 3, 9]) }, size);
  return bitsOf(dtype) % 8 === 0 ? shape : [...shape, 4];
}

function swap<Item>(items: Item[], one: number, other: number): void {
  const [a, b] = [items[one], items[other]];
  if (a === undefined || b === undefined) return;
  items[one] = b;
  items[other] = a;
}

const NONE: Draft["tensors"] = [{ name: "", dtype: "", shape: [], offsets: [], more: "" }];

type Mistake = (draft: Draft, random: Random) => void;

/** Of one tensor, when there is any. */
function ofOne(change: (tensor: Draft["tensors"][number], random: Random, draft: Draft) => void): Mistake {
  return (draft, random) => {
    const tensor = draft.tensors[random.between(0, draft.tensors.length - 1)];
    if (tensor !== undefined) change(tensor, random, draft);
  };
}

function changedNumber(text: string, random: Random): string {
  const by = random.pick([1, -1, 2, -2, 4, -4, 8, 256, random.between(-40, 40)]);
  return random.chance(0.75) ? String(Math.max(0, Number(text) + by)) : oddNumber(random);
}

function changeOne(texts: string[], random: Random): void {
  const at = random.between(0, texts.length - 1);
  texts[at] = changedNumber(texts[at] ?? "0", random);
}

const MISTAKES: readonly Mistake[] = [
  ofOne(({ offsets }, random) => changeOne(offsets, random)),
  ofOne(({ offsets }, random) => {
    const by = random.pick([1, 2, 4, -1, -2, -4]);
    for (const at of offsets.keys()) offsets[at] = String(Math.max(0, Number(offsets[at]) + by));
  }),
  ofOne((tensor, random, { tensors }) => {
    tensor.offsets = [...random.pick(tensors).offsets];
  }),
  ofOne(({ offsets }) => void offsets.reverse()),
  ofOne(({ offsets }, random) => void (random.chance(0.5) ? offsets.pop() : offsets.push("0"))),
  ofOne(({ shape }, random) => changeOne(shape, random)),
  ofOne(({ shape }, random) => void (random.chance(0.5) ? shape.pop() : shape.push(random.pick(["0", "1", "2"])))),
  ({ tensors }, random) => {
    // The product is too large to count, or its bytes are; or it is zero after it has been too large.
    const shape = random.pick([["94906267", "94906267", random.pick(["0", "1"])], ["9007199254740991"]]);
    const dtype = `"${random.pick(["U8", "F64", "F4"])}"`;
    tensors.push({ name: "large", dtype, shape, offsets: ["0", "0"], more: "" });
  },
  ofOne((tensor, random) => {
    const wrong = ['"BF17"', '"toString"', '"__proto__"', '"bf16"', "1", "null", '""'];
    tensor.dtype = random.pick([...wrong, ...DTYPES.map((dtype) => `"${dtype}"`)]);
  }),
  ofOne((tensor, random, { tensors }) => {
    tensor.name = random.pick(tensors).name;
  }),
  ofOne((tensor, random) => {
    tensor.more = random.pick([',"dtype":"U8"', ',"shape":[0]', ',"extra":1', ',"":{}', `,"deep":${nested(random)}`]);
  }),
  (draft, random) => {
    // What follows some place moves, the file's end too: an overlap, or a hole, and nothing else.
    const by = random.pick([1, 2, 4, 8, -1, -2, -4, -8]);
    const [from] = random.pick(draft.tensors.length > 0 ? draft.tensors : NONE).offsets;
    for (const { offsets } of draft.tensors) {
      if (Number(offsets[0]) < Number(from)) continue;
      for (const at of offsets.keys()) offsets[at] = String(Math.max(0, Number(offsets[at]) + by));
    }
    draft.dataBytes = Math.max(0, draft.dataBytes + by);
  },
  (draft, random) => void draft.tensors.splice(random.between(0, draft.tensors.length), 1),
  (draft, random) => void draft.others.push(`${quote(random, anyName(random))}:${anyJson(random)}`),
  (draft, random) => void draft.others.push(`"__metadata__":${anyJson(random)}`),
  (draft, random) => void draft.others.push(`"n":${nested(random)}`),
  (draft, random) => {
    draft.dataBytes = Math.max(0, draft.dataBytes + random.pick([1, -1, 2, -2, 8, -8, 2 ** 40, 2 ** 53]));
  },
  (draft, random) => {
    draft.lengthOff = random.pick([1, -1, 8, -8, 100, -100, 2 ** 31, 2 ** 40, 1e8]);
  },
  (draft, random) => {
    draft.after = random.pick(["\0", "x", "}", "{}", "\n\n", ",", "\u00a0"]);
  },
];

function written({ tensors, others, dataBytes, lengthOff, after }: Draft, random: Random): HeaderInput {
  const gap = () => space(random);
  const list = (items: readonly string[]) => `[${items.map((item) => gap() + item + gap()).join(",")}]`;
  const entries = tensors.map(({ name, dtype, shape, offsets, more }) => {
    const fields = [`"dtype":${gap()}${dtype}`, `"shape":${gap()}${list(shape)}`, `"data_offsets":${list(offsets)}`];
    if (random.chance(0.2)) fields.reverse();
    if (random.chance(0.02)) fields.pop();
    return `${gap()}${quote(random, name)}${gap()}:{${fields.join(",")}${more}}`;
  });
  const json = Buffer.from(`{${[...others, ...entries].join(`${gap()},`)}${gap()}}${after}`);
  const prefix = Buffer.alloc(8);
  const length = BigInt(json.length) + BigInt(lengthOff);
  prefix.writeBigUInt64LE(BigInt.asUintN(64, length));
  const bytes = Buffer.concat([prefix, json]);
  return { bytes, fileSizeBytes: bytes.length + dataBytes };
}
