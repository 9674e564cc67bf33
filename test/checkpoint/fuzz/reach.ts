// Which blocks of the readers a run has never entered, from the engine's own counts (NODE_V8_COVERAGE).

import { readdirSync, readFileSync, realpathSync } from "node:fs";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";

interface CoverageReport {
  result: { url: string; functions: { ranges: { startOffset: number; endOffset: number; count: number }[] }[] }[];
}

/** `file: code` of each block that no process or thread of the run has entered. */
export function blocksNotReached(reports: string, directory: string, files: readonly string[]): string[] {
  const real = realpathSync(directory);
  const reached = new Map<string, Uint8Array>();
  for (const name of readdirSync(reports)) {
    const { result } = JSON.parse(readFileSync(join(reports, name), "utf8")) as CoverageReport;
    for (const { url, functions } of result) {
      const file = url.startsWith("file://") ? relative(real, fileURLToPath(url)) : "";
      if (!files.includes(file)) continue;
      const here = new Uint8Array(readFileSync(join(directory, file), "utf8").length).fill(1);
      // From the outermost to the innermost: a block's own count is the last.
      for (const { startOffset, endOffset, count } of functions.flatMap(({ ranges }) => ranges)) {
        here.fill(count > 0 ? 1 : 0, startOffset, endOffset);
      }
      reached.set(
        file,
        here.map((one, at) => one | (reached.get(file)?.[at] ?? 0)),
      );
    }
  }
  return files.flatMap((file) => {
    const text = readFileSync(join(directory, file), "utf8");
    const marks = Array.from(reached.get(file) ?? [0], (one) => (one === 1 ? " " : "x")).join("");
    return [...marks.matchAll(/x+/g)]
      .map(({ 0: block, index }) => text.slice(index, index + block.length).trim())
      .filter((code) => code !== "")
      .map((code) => `${file}: ${code}`);
  });
}
