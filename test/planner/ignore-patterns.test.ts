import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { matchIgnored } from "../../orchestrator/planner/ignore-patterns.js";
import { expectLayercastError } from "../checkpoint/expect-error.js";

const NAMES = [
  "lm_head.weight",
  "model.layers.0.mlp.up_proj.weight",
  "model.layers.1.mlp.up_proj.weight",
  "model.norm.weight",
];
const matched = (pattern: string) => [...matchIgnored([pattern], NAMES)];

describe("matchIgnored", () => {
  it("matches whole names, case-sensitive, with * for any run of characters", () => {
    expect(matched("lm_head.weight")).toEqual(["lm_head.weight"]);
    expect(matched("*")).toEqual(NAMES);
    expect(matched("model.layers.*")).toEqual(NAMES.slice(1, 3));
    expect(matched("*.1.*.weight")).toEqual(["model.layers.1.mlp.up_proj.weight"]);
    expect(matched("*norm.weight")).toEqual(["model.norm.weight"]);
    for (const none of [
      "lm_head",
      "LM_HEAD.weight",
      "weight",
      "model.*.bias",
      "",
      "lm_head.weight*x",
      "lm?head.weight",
      "model.norm.weight.weight*",
    ])
      expectLayercastError(() => matched(none), "invalid_request", /names no tensor/);
  });

  it("agrees with the plain meaning of the pattern on any names", () => {
    const letters = (alphabet: string) =>
      fc.array(fc.constantFrom(...alphabet), { maxLength: 8 }).map((all) => all.join(""));
    fc.assert(
      fc.property(fc.array(letters("ab."), { minLength: 1, maxLength: 12 }), letters("ab.*"), (names, pattern) => {
        const sorted = [...new Set(names)].sort();
        const plain = new RegExp(`^${pattern.replaceAll(".", "\\.").replaceAll("*", ".*")}$`);
        const expected = sorted.filter((name) => plain.test(name));
        if (expected.length === 0)
          expectLayercastError(() => matchIgnored([pattern], sorted), "invalid_request", /no tensor/);
        else expect([...matchIgnored([pattern], sorted)]).toEqual(expected);
      }),
      { numRuns: 2000 },
    );
  });

  it("takes no longer for a pattern made to be slow", () => {
    const names = [`${"a".repeat(100_000)}b`];
    const startMs = performance.now();
    expectLayercastError(() => matchIgnored([`${"*a".repeat(250)}*c*`], names), "invalid_request", /names no tensor/);
    // A backtracking matcher would not come back.
    expect(performance.now() - startMs).toBeLessThan(2_000);
  });
});
