// Builds the native core: `node native/build.mjs` in a checkout or an installed package; the output is cmake-js's.
// With `--at-install`, as npm runs it, nothing fails an installation: where there is no compiler the client commands still work, and
// the reason is left for `layercast up` to say.

import { spawnSync } from "node:child_process";
import { accessSync, constants, existsSync, mkdirSync, openSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const native = dirname(fileURLToPath(import.meta.url));
const root = dirname(native);
const build = join(native, "build");
const log = join(build, "install.log");
const reason = join(build, "why-not-built.txt");
const prebuilt = join(native, "prebuilt", `${process.platform}-${process.arch}`, "layercast.node");
const require = createRequire(import.meta.url);

function isOnPath(name) {
  return (process.env.PATH ?? "").split(delimiter).some((directory) => {
    try {
      accessSync(join(directory, name), constants.X_OK);
      return directory !== "";
    } catch {
      return false;
    }
  });
}

function canBeLoaded(addon) {
  try {
    require(addon);
    return true;
  } catch {
    return false;
  }
}

function resolves(name) {
  try {
    return require.resolve(name);
  } catch {
    return null;
  }
}

/** A sentence, or null when all is there that the build needs. */
function whatIsMissing() {
  if (process.platform !== "linux") return `The native core is built for Linux, and this is ${process.platform}.`;
  const compilers = [process.env.CXX, "c++", "g++", "clang++"].filter((name) => name !== undefined && name !== "");
  const missing = [
    isOnPath("cmake") ? null : "cmake",
    compilers.some((name) => existsSync(name) || isOnPath(name)) ? null : "a C++20 compiler (g++ or clang++)",
    isOnPath("make") || isOnPath("ninja") ? null : "make or ninja",
  ].filter((tool) => tool !== null);
  if (missing.length > 0) {
    return `${missing.join(", ")} ${missing.length === 1 ? "was" : "were"} not found (Debian, Ubuntu: apt-get install cmake g++ make).`;
  }
  const packages = ["cmake-js", "node-addon-api", "node-api-headers"].filter(
    (name) => resolves(`${name}/package.json`) === null,
  );
  if (packages.length > 0) {
    return `npm left out ${packages.join(", ")} (--omit=optional): install again without that.`;
  }
  return null;
}

/** @param {"inherit" | number} output */
function compile(output) {
  const cmakeJs = join(dirname(require.resolve("cmake-js/package.json")), "bin", "cmake-js");
  const args = ["compile", "--directory", native, "--out", build, "--CDCMAKE_BUILD_TYPE=Release"];
  const env = { CMAKE_BUILD_PARALLEL_LEVEL: String(availableParallelism()), ...process.env };
  return (
    spawnSync(process.execPath, [cmakeJs, ...args], { cwd: root, env, stdio: ["ignore", output, output] }).status === 0
  );
}

/** An installed package is never built again in place: what the compiler left in between is several times as large. */
function keepOnlyTheResult() {
  for (const name of readdirSync(build)) if (name !== "Release") rmSync(join(build, name), { recursive: true });
}

function atInstall() {
  const isCheckout = existsSync(join(root, "package-lock.json"));
  if (isCheckout || canBeLoaded(prebuilt)) return;
  mkdirSync(build, { recursive: true });
  let why = whatIsMissing();
  if (why === null && !compile(openSync(log, "w"))) why = `Building failed; the log is ${log}.`;
  if (why === null) return keepOnlyTheResult();
  writeFileSync(reason, `${why}\n`);
  console.error(`layercast: the native core was not built, so this machine can run no workers. ${why}`);
}

function byHand() {
  const why = whatIsMissing();
  if (why !== null) {
    console.error(`The native core cannot be built: ${why}`);
    process.exit(1);
  }
  if (!compile("inherit")) process.exit(1);
  rmSync(reason, { force: true });
}

if (process.argv.includes("--at-install")) atInstall();
else byHand();
