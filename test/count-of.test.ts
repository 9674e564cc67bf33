// A count and the noun behind it agree: one helper makes both, everywhere but in the dashboard, whose page imports only its own.

import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { countOf } from "../orchestrator/contract/count-of.js";
import { packageRoot } from "../orchestrator/host/package-root.js";
import { dashboard } from "./dashboard/modules.js";

/** What messages count. */
const NOUNS = [
  ...["buckets", "bytes", "calls", "dimensions", "elements", "experts", "exports", "files", "fleets", "heads"],
  ...["hooks", "jobs", "kernel tensors", "layers", "matrices", "modules", "orchestrators", "parts", "ranks"],
  ...["reloads", "replicas", "requests", "retries", "rows", "saves", "shards", "slices", "tensors", "threads", "tries"],
  ...["urls", "values", "warnings", "workers"],
];
/** A value in a sentence, then what is counted; a constant in capitals is never 1. */
const COUNTED = new RegExp(`\\$\\{((?:[^{}]|\\{[^{}]*\\})*)\\} (?:more |other )?(?:${NOUNS.join("|")})\\b`, "g");

describe("a count before a noun", () => {
  it("is one of one thing, and several of others", () => {
    expect([0, 1, 2, 1n, 2n].map((count) => countOf(count, "job"))).toEqual([
      "0 jobs",
      "1 job",
      "2 jobs",
      "1 job",
      "2 jobs",
    ]);
    expect([1, 3].map((count) => countOf(count, "matrix", "matrices"))).toEqual(["1 matrix", "3 matrices"]);
  });

  it("is said alike by the dashboard", async () => {
    const { count } = await dashboard("nodes.js");
    for (const number of [0, 1, 2]) expect(count(number, "replica")).toBe(countOf(number, "replica"));
  });

  it("is made by the helper in every message", () => {
    const sources = ["orchestrator", "worker"].flatMap((folder) =>
      readdirSync(join(packageRoot(), folder), { recursive: true, encoding: "utf8" })
        .filter((file) => /\.(?:ts|js)$/.test(file))
        .map((file) => join(folder, file)),
    );
    const byHand = sources.flatMap((file) => {
      const text = readFileSync(join(packageRoot(), file), "utf8");
      return [...text.matchAll(COUNTED)]
        .filter(([, value = ""]) => !/^[A-Z_]+$/.test(value))
        .map(([found]) => `${file}: ${found}`);
    });
    expect(sources.length).toBeGreaterThan(100);
    expect(byHand).toEqual([]);
  });
});
