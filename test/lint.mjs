// The linters of Python and C++, as steps of `npm test`. deploy/setup.sh --dev installs them; where it could not, for a user who may install
// nothing, their steps say so and count nothing.

import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { execute } from "./execute.mjs";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const tools = join(root, ".layercast", "lint", "bin");
/** What was found right before, by the digest of all that the answer depends on. */
const known = join(root, ".layercast", "lint-known");

/** @typedef {{ passed: number, failed: number, output: string }} Result */

/** ruff over all Python, mypy over all of it too: strictly over the package, which strangers import. @returns {Promise<Result>} */
export async function lintPython() {
  if (!existsSync(join(tools, "ruff")) || !existsSync(join(tools, "mypy"))) return missing("ruff and mypy");
  const config = join(root, "worker", "python", "pyproject.toml");
  const loosely = ["--config-file=", "--ignore-missing-imports", "--check-untyped-defs"];
  const scripts = [...pythonIn("docs/examples"), ...pythonIn("test/e2e"), ...pythonIn("test/engine")];
  const makers = pythonIn("test/fixtures/make_families");
  const answers = [
    await run("ruff", ["check", "--config", config, "worker/python", "test", "docs"], root),
    await run("mypy", ["layercast", "tests"], join(root, "worker", "python")),
    await run("mypy", [...loosely, ...scripts], root),
    await run("mypy", [...loosely, ...makers], join(root, "test", "fixtures", "make_families")),
  ];
  const failed = answers.filter(({ code }) => code !== 0);
  return {
    passed: answers.length - failed.length,
    failed: failed.length,
    output: failed.map(({ output }) => output).join(""),
  };
}

/** clang-tidy over the native core and the bridge; a file that was right and is as it was is not read again. @returns {Promise<Result>} */
export async function lintNative() {
  if (!existsSync(join(tools, "clang-tidy"))) return missing("clang-tidy");
  const files = ["native/src", "native/src/cpu"].flatMap((folder) => filesIn(folder, ".cc"));
  const left = [...files];
  const failures = [];
  const takeFiles = async () => {
    for (let file = left.pop(); file !== undefined; file = left.pop()) {
      const output = await tidy(file);
      if (output !== "") failures.push(output);
    }
  };
  await Promise.all(Array.from({ length: availableParallelism() }, takeFiles));
  return { passed: files.length - failures.length, failed: failures.length, output: failures.join("") };
}

/** Empty when there is nothing to say. */
async function tidy(file) {
  const stamp = join(known, digestOf(file));
  if (existsSync(stamp)) return "";
  const { code, output } = await run("clang-tidy", ["--quiet", file, "--", ...compilerFlags(file)], root);
  if (code !== 0) return output;
  mkdirSync(known, { recursive: true });
  writeFileSync(stamp, "");
  return "";
}

function digestOf(file) {
  const folders = ["native/src", "native/src/cpu"];
  const all = [file, "native/.clang-tidy", "deploy/lint-tools.txt", "package-lock.json", "test/lint.mjs"];
  for (const folder of folders) all.push(...filesIn(folder, ".h"));
  const hash = createHash("sha256");
  for (const one of all) hash.update(`${one}\0`).update(readFileSync(join(root, one)));
  return hash.digest("hex");
}

/** As native/CMakeLists.txt has them; those of optimization change nothing here. */
function compilerFlags(file) {
  const modules = join("node_modules", "node-");
  const theirs = [`-isystem${modules}addon-api`, `-isystem${modules}api-headers/include`];
  const flags = ["-std=c++20", "-Inative/src", ...theirs, "-DNAPI_VERSION=8", "-DNAPI_CPP_EXCEPTIONS"];
  if (process.arch !== "x64") return flags;
  if (file.includes("avx2")) flags.push("-mavx2", "-mf16c");
  if (file.includes("avx512")) flags.push("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mf16c");
  return [...flags, "-DLAYERCAST_X86_VECTORS"];
}

function filesIn(folder, ending) {
  const names = readdirSync(join(root, folder)).filter((name) => name.endsWith(ending));
  const here = process.arch === "x64" ? names : names.filter((name) => !name.includes("avx"));
  return here.map((name) => `${folder}/${name}`);
}

function pythonIn(folder) {
  return readdirSync(join(root, folder))
    .filter((name) => name.endsWith(".py"))
    .map((name) => join(root, folder, name));
}

function run(tool, args, cwd) {
  return execute(join(tools, tool), args, { cwd, env: { ...process.env, MYPYPATH: join(root, "worker", "python") } });
}

/** Root could have installed them. @returns {Result} */
function missing(what) {
  const output = `skipped: ${what} could not be installed; .layercast/setup.log says why, deploy/lint-tools.txt which they are\n`;
  return { passed: 0, failed: process.getuid?.() === 0 ? 1 : 0, output };
}
