// The documents name files, functions, commands and headings; this keeps every such name true.

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import type { Command } from "commander";
import { describe, expect, it } from "vitest";
import { buildProgram } from "../../orchestrator/cli/program.js";

const ROOT = resolve(import.meta.dirname, "../..");
const PAGES = [
  "README.md",
  "CONTRIBUTING.md",
  ...readdirSync(join(ROOT, "docs")).map((name) => join("docs", name)),
].filter((name) => name.endsWith(".md"));
const OWN_PATH = /^(?:orchestrator|worker|native|deploy|docs|test)\/[\w./-]+$/;
const FUNCTION = /^([A-Za-z_]\w*)\(\)$/;

const nothing = () => undefined;
const SILENT = {
  out: nothing,
  err: nothing,
  draw: nothing,
  interactive: false,
  columns: () => 80,
  rows: () => 24,
  env: {},
};

const read = (path: string) => readFileSync(join(ROOT, path), "utf8");
const withoutBlocks = (text: string) => text.replace(/^```.*?^```$/gms, "");
const spansOf = (text: string) => [...text.matchAll(/`([^`\n]+)`/g)].map(([, span]) => span ?? "");

/** As GitHub makes it. */
function slugOf(heading: string): string {
  const plain = heading.toLowerCase().replace(/[^\p{L}\p{N} _-]/gu, "");
  return plain.trim().replaceAll(" ", "-");
}

function headingsOf(text: string): Set<string> {
  return new Set([...withoutBlocks(text).matchAll(/^#+ (.+)$/gm)].map(([, heading]) => slugOf(heading ?? "")));
}

function brokenLinks(page: string): string[] {
  const links = [...withoutBlocks(read(page)).matchAll(/\]\(([^)\s]+)\)/g)].map(([, link]) => link ?? "");
  return links.filter((link) => {
    if (/^[a-z]+:/.test(link)) return false;
    const [path = "", anchor] = link.split("#");
    const target = path === "" ? page : relative(ROOT, resolve(ROOT, dirname(page), path));
    if (!existsSync(join(ROOT, target))) return true;
    return anchor !== undefined && !headingsOf(read(target)).has(anchor);
  });
}

/** Whether the source defines a function, method or function-valued field of that name; a call is not enough. */
function defines(source: string, name: string): boolean {
  const typescript = `(?:function\\*?|const)\\s+${name}\\b|^\\s+(?:async\\s+)?${name}\\s*[(<][^;{}]*\\{$`;
  const cpp = `^[\\w:<>*&, ]+[ :*&]${name}\\([^;]*?\\)[^;]*?\\{`;
  return new RegExp(`${typescript}|${cpp}`, "m").test(source);
}

/** Functions that stand in none of the files that the same paragraph names. */
function lostFunctions(page: string): string[] {
  const paragraphs = withoutBlocks(read(page)).split(/\n\s*\n|\n(?=- )/);
  return paragraphs.flatMap((paragraph) => {
    const spans = spansOf(paragraph);
    const files = spans.filter((span) => OWN_PATH.test(span) && /\.(?:ts|cc|js)$/.test(span));
    const sources = files.filter((file) => existsSync(join(ROOT, file))).map(read);
    const names = spans.flatMap((span) => FUNCTION.exec(span)?.[1] ?? []);
    return names.filter((name) => !sources.some((source) => defines(source, name)));
  });
}

/** The `layercast ...` and `npm run ...` lines of a page's code blocks. */
function commandLines(page: string): string[][] {
  const blocks = [...read(page).matchAll(/^```.*?^```$/gms)].map(([block]) => block).join("\n");
  return blocks.split("\n").flatMap((line) => {
    const words = line.trim().split(/\s+/);
    const start = words.findIndex((word) => word === "layercast" || word === "npm");
    const isPrompt = words.slice(0, Math.max(0, start)).every((word) => /^[A-Z_]+=|^npx$|^--no-install$/.test(word));
    const rest = words[start] === "npm" ? words.slice(start + 1) : words.slice(start);
    const wanted = rest[0] === "layercast" || rest[0] === "run";
    return start === -1 || !isPrompt || !wanted ? [] : [rest];
  });
}

function unknownWords([kind, name = "", ...rest]: string[], program: Command): string[] {
  if (kind === "run") return name in JSON.parse(read("package.json")).scripts ? [] : [name];
  const command = program.commands.find((one) => one.name() === name);
  if (command === undefined) return [name];
  const flags = rest.filter((word) => word.startsWith("--"));
  return flags.filter((flag) => !command.options.some(({ long }) => long === flag));
}

describe.each(PAGES)("%s", (page) => {
  it("links only to files and headings that are there", () => {
    expect(brokenLinks(page)).toEqual([]);
  });

  it("names only files and folders of this repository that are there", () => {
    const named = spansOf(withoutBlocks(read(page))).filter((span) => OWN_PATH.test(span));
    expect(named.filter((path) => !existsSync(join(ROOT, path)))).toEqual([]);
  });

  it("never has npx fetch a program of somebody else's under our name", () => {
    expect(read(page)).not.toMatch(/^[^#\n]*(?<!not type `)npx layercast/m);
  });

  it("prints only commands and options that the program knows", () => {
    const program = buildProgram({ terminal: SILENT, exitCode: 0 });
    expect(commandLines(page).flatMap((line) => unknownWords(line, program))).toEqual([]);
  });
});

describe("docs/walk.md", () => {
  it("names each function beside the file that defines it", () => {
    expect(spansOf(read("docs/walk.md")).filter((span) => FUNCTION.test(span)).length).toBeGreaterThan(40);
    expect(lostFunctions("docs/walk.md")).toEqual([]);
  });

  it.each([
    ["function startReload() {", "startReload", true],
    ["  await startReload(deps);", "startReload", false],
    ["LayerReport run_layer(ThreadPool& pool) {", "run_layer", true],
    ["  run_layer(pool);", "run_layer", false],
  ])("knows a definition from a call: %s", (source, name, defined) => {
    expect(defines(source, name)).toBe(defined);
  });
});
