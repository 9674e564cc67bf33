// A vLLM of the machine's own for the engine cases: a server with the fleet's flags, or one engine without a server that answers
// the same prompts again whenever it is asked.

import { type ChildProcess, spawn } from "node:child_process";
import { createWriteStream } from "node:fs";
import { readFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { packageRoot } from "../../orchestrator/host/package-root.js";

export const ENGINE_PROGRAMS = join(packageRoot(), "test", "engine");

/** A start downloads nothing, but may compile kernels. */
const START_MS = 300_000;
const END_MS = 20_000;

export interface VllmServer {
  url: string;
  /** From its process's start to the first 200 of /health. */
  startMs: number;
  post(path: string, body?: unknown): Promise<string>;
  stop(): Promise<void>;
}

export interface VllmOptions {
  python: string;
  model: string;
  /** As on the command line. */
  args: readonly string[];
  env?: NodeJS.ProcessEnv;
  log: string;
}

export async function startServer({ python, model, args, env, log }: VllmOptions): Promise<VllmServer> {
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  // `vllm serve` is this module, but looks for a package by the name of vllm, which the CPU's has not.
  const command = ["-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "m"];
  const startedAt = performance.now();
  const child = start(python, [...command, "--host", "127.0.0.1", "--port", String(port), ...args], env, log);
  child.stdout?.pipe(createWriteStream(log, { flags: "a" }));
  try {
    await untilHealthy(url, child, log);
  } catch (error) {
    await end(child);
    throw error;
  }
  return {
    url,
    startMs: performance.now() - startedAt,
    post: async (path, body) => {
      const headers = { "content-type": "application/json" };
      const response = await fetch(url + path, { method: "POST", headers, body: JSON.stringify(body ?? {}) });
      const text = await response.text();
      if (!response.ok) throw new Error(`${path} answered ${response.status}: ${text.slice(0, 300)}`);
      return text;
    },
    stop: () => end(child),
  };
}

async function untilHealthy(url: string, child: ChildProcess, log: string): Promise<void> {
  for (const deadline = performance.now() + START_MS; performance.now() < deadline; await delay(100)) {
    if (child.exitCode !== null || child.signalCode !== null)
      throw new Error(`vLLM ended as it started:\n${await tail(log)}`);
    const response = await fetch(`${url}/health`).catch(() => null);
    if (response?.status === 200) return;
  }
  throw new Error(`vLLM was not healthy after ${START_MS} ms:\n${await tail(log)}`);
}

/** What an engine makes of the prompts that test/engine/generate.py has. */
export interface Generated {
  tokens: number[][];
  logprobs: number[][];
}

export interface VllmEngine {
  /** The same prompts again. */
  generate(): Promise<Generated>;
  first: Generated;
  stop(): Promise<void>;
}

export async function startEngine(
  kind: "stock" | "stock-exact" | "arena",
  { python, model, args, env, log }: VllmOptions,
): Promise<VllmEngine> {
  const program = join(ENGINE_PROGRAMS, "generate.py");
  const child = start(python, [program, kind, model, ...args], env, log);
  if (child.stdout === null) throw new Error("the engine has no standard output");
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const next = async () => {
    const { value, done } = await lines.next();
    if (done) throw new Error(`the engine ended:\n${await tail(log)}`);
    return JSON.parse(value as string) as Generated;
  };
  await next(); // what it is
  return {
    first: await next(),
    async generate() {
      child.stdin?.write("\n");
      return next();
    },
    stop: () => end(child),
  };
}

function start(python: string, args: string[], env: NodeJS.ProcessEnv | undefined, log: string): ChildProcess {
  // A group of its own: an engine has processes of its own, which end with it.
  const child = spawn(python, args, {
    detached: true,
    env: { ...process.env, HF_HUB_OFFLINE: "1", VLLM_NO_USAGE_STATS: "1", PYTHONUNBUFFERED: "1", ...env },
    stdio: ["pipe", "pipe", "pipe"],
  });
  child.stderr?.pipe(createWriteStream(log, { flags: "a" }));
  return child;
}

async function end(child: ChildProcess): Promise<void> {
  if (child.pid === undefined) return;
  const gone = new Promise((resolve) => child.once("exit", resolve));
  if (child.exitCode === null && child.signalCode === null) {
    process.kill(-child.pid, "SIGTERM");
    await Promise.race([gone, delay(END_MS, undefined, { ref: false })]);
  }
  try {
    process.kill(-child.pid, "SIGKILL"); // whatever of it is left
  } catch {
    // Nothing is.
  }
}

/** vLLM says the cause first, and then each process that ends with it. */
const TOLD_LINES = 200;

async function tail(log: string): Promise<string> {
  const text = await readFile(log, "utf8").catch(() => "");
  return text.trimEnd().split("\n").slice(-TOLD_LINES).join("\n");
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address !== null ? address.port : 0));
    });
  });
}

/** Prompts whose tokens are equal, and the largest difference of log-probabilities. */
export function compareGenerated(found: Generated, expected: Generated): { equal: number; largest: number } {
  const equal = found.tokens.filter((tokens, at) => String(tokens) === String(expected.tokens[at])).length;
  const differences = found.logprobs.flatMap((one, at) =>
    one.map((value, step) => Math.abs(value - (expected.logprobs[at]?.[step] ?? Number.NaN))),
  );
  return { equal, largest: Math.max(...differences) };
}
