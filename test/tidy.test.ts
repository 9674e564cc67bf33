// How the house is kept: functions and files that are read in one go, and words that a reader knows. What is longer stands here by
// name with its length, and may only become shorter.

import { readdirSync, readFileSync } from "node:fs";
import { join, relative } from "node:path";
import ts from "typescript";
import { describe, expect, it } from "vitest";
import { packageRoot } from "../orchestrator/host/package-root.js";

const MOST_LINES_OF_A_FUNCTION = 60;
const MOST_LINES_OF_A_FILE = 300;

/** Each returns an object of closures over one state. */
const LONG_FUNCTIONS: Record<string, number> = {
  "worker/engines/rank-engines.ts openRankEngines": 142,
  "worker/staging.ts openStagingOwner": 138,
  "worker/rank-arena.ts openRankArena": 104,
  "orchestrator/fleet/session-store.ts openPushSessions": 96,
  "orchestrator/reloads/sources/source-lane.ts openLane": 96,
  "orchestrator/reloads/drive-fleet.ts openDriver": 77,
  "worker/report.ts openReport": 74,
  "orchestrator/reloads/open-reloads.ts openReloads": 73,
  "worker/worker.ts openRank": 70,
  "orchestrator/queue/queues.ts openQueues": 68,
  // A table of codes and what to say of each.
  "worker/explain-native-error.ts explainNativeError": 61,
};

const LONG_FILES: Record<string, number> = {
  "orchestrator/contract/reload.ts": 449, // the schema of a request and of a view, and one sentence a field
  "orchestrator/fleet/reload-transitions.ts": 421, // one function a transition
  "orchestrator/planner/check/check-programs.ts": 375,
  "orchestrator/planner/plan-reload.ts": 334,
  "native/native.ts": 333, // the bridge's types
  "native/src/addon.cc": 488, // one wrapper a function of the bridge
};

interface Source {
  /** From the repository's root. */
  path: string;
  text: string;
}

function sourcesIn(folder: string, ending: RegExp): Source[] {
  const root = packageRoot();
  return readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && ending.test(entry.name))
    .map((entry) => relative(root, join(entry.parentPath, entry.name)))
    .filter((path) => !/(^|\/)(node_modules|build|prebuilt|\.venv)\//.test(path))
    .map((path) => ({ path, text: readFileSync(join(root, path), "utf8") }));
}

const linesOf = (text: string) => text.trimEnd().split("\n").length;

/** Of every function with a body, its own closures included. */
function functionLengths({ path, text }: Source): [what: string, lines: number][] {
  const file = ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true);
  const lineAt = (position: number) => file.getLineAndCharacterOfPosition(position).line;
  const found: [string, number][] = [];
  const visit = (node: ts.Node): void => {
    if (ts.isFunctionLike(node) && "body" in node && node.body !== undefined)
      found.push([`${path} ${node.name?.getText() ?? "?"}`, lineAt(node.end) - lineAt(node.getStart()) + 1]);
    ts.forEachChild(node, visit);
  };
  visit(file);
  return found;
}

/** Those that are longer than they may be, and names in the list of exceptions that are longer than what they name is. */
function wrongLengths(found: [string, number][], most: number, exceptions: Record<string, number>): string[] {
  const tooLong = found
    .filter(([what, lines]) => lines > (exceptions[what] ?? most))
    .map(([what, lines]) => `${what} has ${lines} lines, at most ${exceptions[what] ?? most}`);
  const known = new Map(found);
  const stale = Object.entries(exceptions)
    .filter(([what, lines]) => (known.get(what) ?? 0) < lines)
    .map(
      ([what, lines]) =>
        `${what} has ${known.get(what) ?? 0} lines now: write that instead of ${lines}, or take it out`,
    );
  return [...tooLong, ...stale];
}

const PRODUCT = [...["orchestrator", "worker"].flatMap((folder) => sourcesIn(folder, /\.[jt]s$/))];
const BRIDGE = sourcesIn("native", /^[\w-]+\.ts$/);
const NATIVE = sourcesIn("native/src", /\.(cc|h|cu|cuh)$/);
const PYTHON = sourcesIn("worker/python/layercast", /\.py$/);
const PAGES = [
  ...sourcesIn("docs", /\.md$/),
  ...["README.md", "CONTRIBUTING.md"].map((path) => ({ path, text: readFileSync(join(packageRoot(), path), "utf8") })),
];

describe("what is read", () => {
  it(`is in functions of at most ${MOST_LINES_OF_A_FUNCTION} lines`, () => {
    const found = [...PRODUCT, ...BRIDGE].flatMap(functionLengths);
    expect(wrongLengths(found, MOST_LINES_OF_A_FUNCTION, LONG_FUNCTIONS)).toEqual([]);
  });

  it(`is in files of at most ${MOST_LINES_OF_A_FILE} lines`, () => {
    const found = [...PRODUCT, ...BRIDGE, ...NATIVE, ...PYTHON].map(({ path, text }): [string, number] => [
      path,
      linesOf(text),
    ]);
    expect(wrongLengths(found, MOST_LINES_OF_A_FILE, LONG_FILES)).toEqual([]);
  });

  it("says again and handle", () => {
    const wrong = [...PRODUCT, ...BRIDGE, ...NATIVE, ...PYTHON, ...PAGES].flatMap(({ path, text }) =>
      text
        .split("\n")
        .flatMap((line, at) => (/\b(anew|heed(s|ed|ing)?)\b/i.test(line) ? [`${path}:${at + 1}: ${line.trim()}`] : [])),
    );
    expect(wrong).toEqual([]);
  });

  it("names its nouns: no sentence of a page begins with Of, Who or What as a pronoun", () => {
    const wrong = PAGES.flatMap(({ path, text }) =>
      [...proseOf(text).matchAll(/(?:^|[.:] )((?:Of|Who|What) [^.?:|]{0,60}[^?.:|]*)([.?:|]|$)/gm)]
        .filter(([, , end]) => end !== "?")
        .map(([, sentence = ""]) => `${path}: ${sentence.slice(0, 80)}`),
    );
    expect(wrong).toEqual([]);
  });
});

/** Without code, headings and tables. */
function proseOf(markdown: string): string {
  return markdown
    .replaceAll(/^```.*?^```/gms, "")
    .split("\n")
    .filter((line) => !/^(#|\||- \[)/.test(line))
    .join("\n");
}
