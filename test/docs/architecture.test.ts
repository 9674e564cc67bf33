// "Who imports whom" in docs/architecture.md is what the code imports.

import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { expect, it } from "vitest";
import { packageRoot } from "../../orchestrator/host/package-root.js";

const IMPORT = /(?:\bfrom|\bimport\(?)\s*"(\.{1,2}\/[^"]+)"/g;

/** `orchestrator/cli/up.ts` is of `cli`, `orchestrator/host/redis.ts` of `redis`, `worker/push/cells.ts` of `worker`. */
function partOf(file: string): string {
  const [top = "", next = ""] = file.split("/");
  return top === "orchestrator" ? next.replace(/\.[jt]s$/, "") : top;
}

function sources(): string[] {
  const inFolder = (folder: string) =>
    readdirSync(join(packageRoot(), folder), { recursive: true, encoding: "utf8" }).map((file) => join(folder, file));
  const files = [...inFolder("orchestrator"), ...inFolder("worker")].filter((file) => /\.[jt]s$/.test(file));
  return [...files, "native/native.ts"];
}

function importsOfParts(): Map<string, Set<string>> {
  const imports = new Map<string, Set<string>>();
  for (const file of sources()) {
    const part = partOf(file);
    const known = imports.get(part) ?? new Set();
    imports.set(part, known);
    for (const [, target = ""] of readFileSync(join(packageRoot(), file), "utf8").matchAll(IMPORT)) {
      const other = partOf(normalize(join(dirname(file), target)));
      if (other !== part) known.add(other);
    }
  }
  return imports;
}

const names = (cell: string) => [...cell.matchAll(/`([^`]+)`/g)].map(([, name = ""]) => name);

it("docs/architecture.md says of each folder, and of main and server, exactly what it imports", () => {
  const text = readFileSync(join(packageRoot(), "docs/architecture.md"), "utf8");
  const rows = [...text.matchAll(/^\| `([\w-]+)` \| ([^|]*)\| [^|]*\|$/gm)].filter(
    ([line]) => line.split("|").length === 5,
  );
  const said = new Map(rows.map(([, who = "", imported = ""]) => [who, names(imported)]));
  const imports = importsOfParts();
  const folders = readdirSync(join(packageRoot(), "orchestrator"), { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map(({ name }) => name);
  const parts = [...folders, "worker", "native", "main", "server"].sort();
  expect([...said.keys()].sort()).toEqual(parts);
  for (const part of parts) expect([part, said.get(part)]).toEqual([part, [...(imports.get(part) ?? [])].sort()]);
});
