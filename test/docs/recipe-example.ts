// The program with the recipe of docs/adding-a-recipe.md in it: a copy of the sources with the page's code, compiled.

import { execFile } from "node:child_process";
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";
import { applyPatch, compile, patched } from "../compile.js";
import { type CodeBlocks, codeBlocksOf } from "./code-blocks.js";

const ROOT = join(import.meta.dirname, "../..");
/** Little time to compile, so long as nothing runs for long; the numbers are the same at every level. */
const FLAGS = "-O1";

const execute = promisify(execFile);

export interface Example {
  /** A module of the copy. */
  load<Module>(path: string): Promise<Module>;
  /** Builds a target of native/CMakeLists.txt; says what the compiler said where it refuses. */
  build(target: string): Promise<void>;
  /** Runs a program that was built, to its last line. */
  run(program: string, args: readonly string[]): Promise<string>;
  /** What nvcc says of a file of native/src/cuda; empty: nothing. */
  compileCuda(file: string): Promise<string>;
  remove(): void;
}

export async function copyWithExample(page: string): Promise<Example> {
  const blocks = codeBlocksOf(readFileSync(join(ROOT, page), "utf8"));
  const compiled = compile("orchestrator/planner/plan-reload.ts", []);
  const { directory, remove } = patched(compiled, "example", blocks.patches.filter(isTypeScript));
  compiled.remove();
  const build = join(directory, "native/build");
  try {
    putSources(directory, blocks);
    await cmake(["-S", join(directory, "native"), "-B", build, ...options(build)]);
  } catch (error) {
    remove();
    throw error;
  }
  return {
    load: (path) => import(/* @vite-ignore */ pathToFileURL(join(directory, path)).href),
    build: (target) => cmake(["--build", build, "--parallel", "2", "--target", target]),
    run: async (program, args) => (await execute(join(build, program), args)).stdout.trim().split("\n").at(-1) ?? "",
    compileCuda: (file) => compileCuda(join(directory, "native/src/cuda", file)),
    remove,
  };
}

const isTypeScript = ({ file }: { file: string }) => file.endsWith(".ts");

/** The native core and its tests, with the page's code. */
function putSources(directory: string, { files, patches }: CodeBlocks): void {
  for (const path of ["native/CMakeLists.txt", "native/src", "test/native"])
    cpSync(join(ROOT, path), join(directory, path), { recursive: true, filter: (name) => !name.endsWith(".ts") });
  for (const { file, text } of files) put(join(directory, file), text);
  for (const patch of patches.filter((one) => !isTypeScript(one)))
    put(join(directory, patch.file), applyPatch(readFileSync(join(directory, patch.file), "utf8"), patch));
}

/** The addon beside where the copy of native/native.ts looks for it. */
function options(build: string): string[] {
  const include = ["node-api-headers/include", "node-addon-api"].map((path) => join(ROOT, "node_modules", path));
  return [
    "-DCMAKE_BUILD_TYPE=Example",
    `-DCMAKE_CXX_FLAGS=${FLAGS}`,
    `-DCMAKE_JS_INC=${include.join(";")}`,
    `-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=${join(build, "Release")}`,
    "-DLAYERCAST_CUDA=off",
    "-DLAYERCAST_TESTS=ON",
  ];
}

async function cmake(args: readonly string[]): Promise<void> {
  await execute("cmake", args, { maxBuffer: 1 << 26 }).catch((error: { stdout?: string; stderr?: string }) => {
    throw new Error(`cmake ${args[0]} failed:\n${error.stdout ?? ""}${error.stderr ?? ""}`);
  });
}

async function compileCuda(file: string): Promise<string> {
  const args = ["-std=c++20", "--expt-relaxed-constexpr", "--fmad=false", "-arch=sm_80", "-c", file, "-o", `${file}.o`];
  const { stdout, stderr } = await execute("nvcc", args);
  return `${stdout}${stderr}`.trim();
}

function put(path: string, text: string): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text);
}
