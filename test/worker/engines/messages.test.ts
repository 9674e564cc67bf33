// What engines send, cut into lines and checked.

import { describe, expect, it } from "vitest";
import { lineReader, MAX_LINE_BYTES, parseEngineMessage } from "../../../worker/engines/messages.js";

const HELLO = {
  ...{ hello: 1, engine: "e-0", role: "rank", name: "vllm", version: "0.26.0", pid: 1, host: "h", url: null },
  ...{ world: 1, rank: 0, data_parallel_rank: 0, state: "starting" },
};

describe("a line", () => {
  it("may come in any pieces, several at once, and end in the middle of a character", () => {
    const bytes = Buffer.from('{"a":"é"}\n{"b":2}\n{"c"');
    for (let cut = 0; cut <= bytes.length; cut++) {
      const read = lineReader();
      const lines = [...(read(bytes.subarray(0, cut)) ?? []), ...(read(bytes.subarray(cut)) ?? [])];
      expect(lines).toEqual(['{"a":"é"}', '{"b":2}']);
      expect(read(Buffer.from(":3}\n"))).toEqual(['{"c":3}']);
    }
  });

  it("of more than 64 KiB is none, whether it has ended or not", () => {
    const whole = Buffer.alloc(MAX_LINE_BYTES, "x");
    expect(lineReader()(Buffer.concat([whole, Buffer.from("\n")]))).toHaveLength(1);
    expect(lineReader()(Buffer.concat([whole, Buffer.from("x")]))).toBeNull();
    expect(lineReader()(Buffer.concat([whole, Buffer.from("x\n")]))).toBeNull();
    const read = lineReader();
    expect(read(whole)).toEqual([]);
    expect(read(Buffer.from("x"))).toBeNull();
  });
});

describe("a message", () => {
  const parse = (value: unknown) => parseEngineMessage(typeof value === "string" ? value : JSON.stringify(value));

  it("is known by its field, and may have fields that nobody knows", () => {
    expect(parse({ ...HELLO, more: true })).toMatchObject({ kind: "hello", hello: { engine: "e-0", url: null } });
    expect(parse({ state: "ready", x: 1 })).toEqual({ kind: "ready" });
    expect(parse({ stopped: 7 })).toEqual({ kind: "stopped", epoch: 7 });
    expect(parse({ running: 7, stop_ms: 2.5, still_ms: 1, weight_version: null })).toMatchObject({ kind: "running" });
    expect(parse({ trouble: "Ranks\ndiffer.\u001b[2J" })).toEqual({ kind: "trouble", trouble: "Ranks differ. [2J" });
    expect(parse({ trouble: null })).toEqual({ kind: "trouble", trouble: null });
    expect(parse({ later: 1 })).toEqual({ kind: "unknown" });
  });

  it.each([
    ["what is no JSON", "{"],
    ["what is no object", "[]"],
    ["null", "null"],
    ["nothing", ""],
    ["a hello without a field", { ...HELLO, pid: undefined }],
    ["a hello with a field of another kind", { ...HELLO, world: "1" }],
    ["a hello whose name would draw on a terminal", { ...HELLO, name: "\u001b[2J" }],
    ["a role that there is not", { ...HELLO, role: "ranks" }],
    ["a state that no engine says", { state: "gone" }],
    ["a negative epoch", { stopped: -1 }],
    ["a number that JSON rounds", { stopped: 2 ** 60 }],
    ["a running without its times", { running: 7 }],
    ["an empty trouble", { trouble: "" }],
  ])("%s is none", (_, value) => {
    expect(parse(value)).toBeNull();
  });
});
