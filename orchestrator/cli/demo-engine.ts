// The demo's second act: a real vLLM out of a fleet's arena is asked, the fleet reloads, it is asked again, the fleet rolls back, it
// is asked again; each answer is compared with that of a vLLM that has loaded the checkpoint itself.

import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { LayercastError } from "../contract/errors.js";
import { packageRoot } from "../host/package-root.js";
import type { Terminal } from "./terminal.js";

/** Resolves to whether every answer was right. */
export async function demoEngine(terminal: Terminal, device: string, scheme: string): Promise<boolean> {
  const venv = join(packageRoot(), "deploy", "engine-venv.sh");
  const example = join(packageRoot(), "docs", "examples", "vllm_follows_reloads.py");
  if (!existsSync(venv) || !existsSync(example)) {
    throw new LayercastError(
      "invalid_request",
      "demo --engine runs in a checkout of Layercast: the package has no tests.",
    );
  }
  const { LAYERCAST_ENGINE_PYTHON: given = "" } = terminal.env;
  terminal.out("\nSecond act: vLLM computes out of the arena.");
  if (given === "") terminal.out("It needs a vLLM for the CPU (3 GB, made once in .layercast; some minutes) ...");
  const python = given === "" ? join((await output("bash", [venv], terminal)).trim(), "bin", "python") : given;
  return (await follow(python, [example, "--device", device, "--recipe", scheme], terminal)) === 0;
}

/** Of a program that must succeed; its progress goes to standard error. */
function output(program: string, args: string[], terminal: Terminal): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: ["ignore", "pipe", "inherit"], env: terminal.env });
    const chunks: Buffer[] = [];
    child.stdout.on("data", (chunk: Buffer) => chunks.push(chunk));
    child.once("error", reject);
    child.once("close", (code) => {
      if (code === 0) resolve(Buffer.concat(chunks).toString());
      else reject(new LayercastError("io_error", `${program} ${args.join(" ")} ended with ${code}; why stands above.`));
    });
  });
}

function follow(program: string, args: string[], terminal: Terminal): Promise<number> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: "inherit", env: { ...terminal.env, PYTHONUNBUFFERED: "1" } });
    child.once("error", reject);
    child.once("close", (code) => resolve(code ?? 1));
  });
}
