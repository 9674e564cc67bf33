// The program's sources and those of a test as plain JavaScript in a folder of their own, as they are or with one rule
// switched off, for processes that run them. Nothing is checked here: `npm test` does that elsewhere.

import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import ts from "typescript";

const ROOT = join(import.meta.dirname, "..");
const FOLDERS = ["orchestrator", "worker", "native"];

/** A change of one file's text: what stands there exactly once, and what is put there. */
export interface Patch {
  file: string;
  find: string;
  put: string;
}

export interface Compiled {
  directory: string;
  /** The JavaScript to run. */
  program: string;
  remove(): void;
}

/** `program`: the TypeScript to run; `folders`: what it needs of the tests. Below node_modules, so that packages are found. */
export function compile(program: string, folders: readonly string[]): Compiled {
  const directory = newDirectory(`${dirname(program).replaceAll("/", "-")}-all`);
  for (const file of [...FOLDERS, ...folders].flatMap(sourcesIn)) {
    put(directory, file, readFileSync(join(ROOT, file), "utf8"));
  }
  writeFileSync(join(directory, "package.json"), '{"type":"module"}');
  return compiledIn(directory, toJavaScript(program));
}

/** A copy of what was compiled, with the patches. */
export function patched(compiled: Compiled, name: string, patches: readonly Patch[]): Compiled {
  const directory = compiled.directory.replace(/-all$/, `-${name}`);
  cpSync(compiled.directory, directory, { recursive: true });
  for (const file of new Set(patches.map((patch) => patch.file))) {
    const text = readFileSync(join(ROOT, file), "utf8");
    put(directory, file, patches.filter((patch) => patch.file === file).reduce(applyPatch, text));
  }
  return compiledIn(directory, relative(compiled.directory, compiled.program));
}

function newDirectory(name: string): string {
  return join(ROOT, "node_modules", ".cache", `layercast-${process.pid}-${name}`);
}

function put(directory: string, file: string, text: string): void {
  const { outputText } = ts.transpileModule(text, { compilerOptions: OPTIONS });
  const to = join(directory, toJavaScript(file));
  mkdirSync(dirname(to), { recursive: true });
  writeFileSync(to, outputText);
}

function compiledIn(directory: string, program: string): Compiled {
  return {
    directory,
    program: join(directory, program),
    remove: () => rmSync(directory, { recursive: true, force: true }),
  };
}

const toJavaScript = (file: string) => file.replace(/\.ts$/, ".js");

const OPTIONS: ts.CompilerOptions = {
  target: ts.ScriptTarget.ES2023,
  module: ts.ModuleKind.ESNext,
  verbatimModuleSyntax: true,
};

function sourcesIn(folder: string): string[] {
  return readdirSync(join(ROOT, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith(".ts") && !entry.name.endsWith(".test.ts"))
    .filter((entry) => !entry.parentPath.includes("node_modules"))
    .map((entry) => relative(ROOT, join(entry.parentPath, entry.name)));
}

export function applyPatch(text: string, { file, find, put }: Patch): string {
  const parts = text.split(find);
  if (parts.length !== 2)
    throw new Error(`${file} has ${parts.length - 1} places like ${JSON.stringify(find)}, not one`);
  return parts.join(put);
}
