// `npm test`: every check and test, two steps at a time; a step that fails does not keep the next from running. The last line is
// `N passed, N failed`. Arguments name the steps to run (default: all). `--deep` takes all schedules, fuzz inputs and orders of a push
// instead of a sample of them, and looks for rules that are seldom missed.

import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { constants, setPriority, tmpdir } from "node:os";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { execute as executeIn } from "./execute.mjs";
import { lintNative, lintPython } from "./lint.mjs";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const scratch = mkdtempSync(join(tmpdir(), "layercast-test-"));
const cores = process.env.CMAKE_BUILD_PARALLEL_LEVEL ?? "2";

const isDeep = process.argv.includes("--deep");
const env = { ...process.env, NO_COLOR: "1", FORCE_COLOR: "0", LAYERCAST_DEEP: isDeep ? "1" : "0" };

/** In the order in which they start: see `runSteps`. */
const STEPS = [
  { name: "e2e", run: () => vitest("e2e") },
  { name: "lint", run: () => check("biome", "ci", "--colors=off", ".") },
  { name: "types", run: () => check("tsc", "-p", "tsconfig.json") },
  { name: "imports", run: checkImports },
  { name: "dead-code", run: () => check("knip") },
  { name: "lint-python", run: lintPython },
  { name: "lint-native", run: lintNative },
  { name: "native", run: () => nativeTests("build-test", "", isDeep ? "all" : "layercast_tests") },
  { name: "native-sanitized", run: () => nativeTests("build-test-sanitized", "address,undefined", "layercast_tests") },
  { name: "schedules", run: () => vitest("schedules") },
  { name: "unit", run: () => vitest("unit") },
  { name: "fuzz", run: () => vitest("fuzz") },
  { name: "python", run: pythonTests },
];

/** @typedef {{ passed: number, failed: number, output: string }} Result */

/** A program of node_modules that says by its exit code whether all is well. @returns {Promise<Result>} */
async function check(program, ...args) {
  const { code, output } = await execute(join(root, "node_modules", ".bin", program), args);
  return { passed: code === 0 ? 1 : 0, failed: code === 0 ? 0 : 1, output };
}

/** Who imports whom, for TypeScript and for the part of the C++ that may know Node. */
async function checkImports() {
  const folders = ["orchestrator", "worker", "native", "test"];
  const rules = await check("depcruise", "--config", ".dependency-cruiser.cjs", ...folders);
  const offenders = nativeSources()
    .filter((file) => /#include\s*[<"]napi\.h[>"]/.test(readFileSync(file, "utf8")))
    .map((file) => relative(root, file))
    .filter((file) => !/^native\/src\/addon(_\w+)?\.(cc|h)$/.test(file));
  const found = offenders
    .map((file) => `${file} includes napi.h: only native/src/addon.cc and its own headers may\n`)
    .join("");
  const failed = offenders.length > 0 ? 1 : 0;
  return { passed: rules.passed + 1 - failed, failed: rules.failed + failed, output: rules.output + found };
}

function nativeSources() {
  const entries = readdirSync(join(root, "native", "src"), { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => /\.(cc|h|cu|cuh)$/.test(entry.name))
    .map((entry) => join(entry.parentPath, entry.name));
}

/** Builds the target and runs the native core's own tests, which end with `N passed, N failed`. */
async function nativeTests(folder, sanitize, target) {
  const build = join("native", folder);
  const options = ["-DLAYERCAST_TESTS=ON", `-DLAYERCAST_SANITIZE=${sanitize}`];
  let output = "";
  for (const args of [
    ["-S", "native", "-B", build, ...options],
    ["--build", build, "--target", target, "--parallel", cores],
  ]) {
    const step = await execute("cmake", args);
    output += step.output;
    if (step.code !== 0) return { passed: 0, failed: 1, output };
  }
  const tests = await execute(join(root, build, "layercast_tests"), []);
  const counts = /(\d+) passed, (\d+) failed/.exec(tests.output);
  const [passed, counted] = [Number(counts?.[1] ?? 0), Number(counts?.[2] ?? 0)];
  return { passed, failed: failures(counted, passed, tests.code), output: tests.output };
}

/** The consumer package's own tests; those that need torch or a GPU skip themselves and are not counted. */
async function pythonTests() {
  const folder = join("worker", "python");
  const args = ["-B", "-m", "unittest", "discover", "-v", "-s", folder, "-t", folder];
  const { code, output } = await execute("python3", args);
  const passed = output.match(/ \.\.\. ok$/gm)?.length ?? 0;
  const [, counts = ""] = /^FAILED \((.*)\)$/m.exec(output) ?? [];
  const counted = [...counts.matchAll(/(?:failures|errors)=(\d+)/g)].reduce((sum, [, count]) => sum + Number(count), 0);
  return { passed, failed: failures(counted, passed, code), output };
}

async function vitest(project) {
  const report = join(scratch, `${project}.json`);
  const args = ["run", "--project", project, "--reporter=default", "--reporter=json", `--outputFile.json=${report}`];
  const { code, output } = await execute(join(root, "node_modules", ".bin", "vitest"), args);
  const { numPassedTests = 0, numFailedTests = 0, numFailedTestSuites = 0 } = readReport(report);
  const counted = Math.max(numFailedTests, numFailedTestSuites > 0 ? 1 : 0);
  return { passed: numPassedTests, failed: failures(counted, numPassedTests, code), output };
}

function readReport(path) {
  try {
    return JSON.parse(readFileSync(path, "utf8"));
  } catch {
    return {}; // it did not get that far: its exit code says so
  }
}

/** A crash counts, and so does a step that found nothing to run. */
function failures(counted, passed, code) {
  if (counted > 0) return counted;
  return code === 0 && passed > 0 ? 0 : 1;
}

function execute(command, args) {
  return executeIn(command, args, { cwd: root, env });
}

/**
 * Two at a time. The first one, e2e, waits for deadlines a fifth of its time: the others take what it leaves, at a lower priority so
 * that they don't make its processes late.
 */
async function runSteps(steps) {
  const total = { passed: 0, failed: 0 };
  const left = [...steps];
  const takeSteps = async () => {
    for (let step = left.shift(); step !== undefined; step = left.shift()) {
      const { passed, failed } = await runStep(step);
      total.passed += passed;
      total.failed += failed;
    }
  };
  const first = takeSteps();
  setPriority(constants.priority.PRIORITY_LOW); // of processes that this one starts from here on
  await Promise.all([first, takeSteps()]);
  return total;
}

async function runStep({ name, run }) {
  const startedAt = performance.now();
  const { passed, failed, output } = await run();
  const seconds = ((performance.now() - startedAt) / 1000).toFixed(1);
  console.log(
    `${failed === 0 ? "ok  " : "FAIL"} ${name.padEnd(16)} ${seconds.padStart(6)} s  ${passed} passed, ${failed} failed.`,
  );
  if (failed > 0 || passed === 0) console.log(output.trimEnd());
  return { passed, failed };
}

async function main() {
  const wanted = process.argv.slice(2).filter((name) => name !== "--deep");
  const unknown = wanted.filter((name) => !STEPS.some((step) => step.name === name));
  if (unknown.length > 0) {
    console.error(`no such step: ${unknown.join(", ")}; there are ${STEPS.map((step) => step.name).join(", ")}`);
    process.exit(2);
  }
  const total = await runSteps(STEPS.filter(({ name }) => wanted.length === 0 || wanted.includes(name)));
  rmSync(scratch, { recursive: true, force: true });
  console.log(`${total.passed} passed, ${total.failed} failed`);
  process.exitCode = total.failed === 0 ? 0 : 1;
}

await main();
