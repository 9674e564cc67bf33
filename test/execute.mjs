// A program run to its end, with all that it wrote.

import { spawn } from "node:child_process";

/** `code` is -1 when it could not be started. @returns {Promise<{ code: number, output: string }>} */
export function execute(command, args, options) {
  return new Promise((resolve) => {
    const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], ...options });
    let output = "";
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding("utf8").on("data", (text) => {
        output += text;
      });
    }
    child.on("error", (error) => resolve({ code: -1, output: `${command}: ${error.message}\n` }));
    child.on("close", (code) => resolve({ code: code ?? -1, output }));
  });
}
