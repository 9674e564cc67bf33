// A process that does source work for its orchestrator, one piece at a time, and ends with it.

import { reportError } from "../../contract/errors.js";
import { faultPoint } from "../../host/fault-point.js";
import type { SourceAnswer, SourceTask } from "./source-pool.js";
import { sourceWork } from "./source-work.js";

const work = sourceWork(JSON.parse(process.argv[2] ?? "[]") as string[]);

process.on("message", (task: SourceTask) => {
  void answer(task).then((answered) => process.send?.(answered));
});

// Not by process.exit(), which waits for threads that may be stuck in a file system.
process.on("disconnect", () => process.kill(process.pid, "SIGKILL"));

async function answer({ name, args }: SourceTask): Promise<SourceAnswer> {
  try {
    await faultPoint(`source.${name}`);
    return { value: await (work[name] as (...args: unknown[]) => Promise<unknown>)(...args) };
  } catch (error) {
    return { error: reportError(error) };
  }
}
