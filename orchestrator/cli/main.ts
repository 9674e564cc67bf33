#!/usr/bin/env node
// `layercast`: this process's arguments -> its exit code.

import { EXIT } from "./command.js";
import { runCli } from "./program.js";
import { processTerminal } from "./terminal.js";

// Whoever read the output has gone (`layercast status | head -1`).
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE") throw error;
  process.exit(EXIT.failed);
});

const exitCode = await runCli(process.argv.slice(2), processTerminal());
// A server that could not start may have left connections open that would keep it here; one that did start goes on.
if (exitCode !== EXIT.ok) process.exit(exitCode);
