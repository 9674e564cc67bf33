// The run directory of `layercast up`: one owner at a time.

import { createHash } from "node:crypto";
import { mkdir, readFile, realpath, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { LayercastError } from "../../contract/errors.js";

/**
 * Makes the directory and claims it for the life of this process; returns its real path. The claim is a socket in Linux's
 * abstract name space: taken atomically, and free again when its process is gone, however it ended. `up.pid` is for people.
 */
export async function claimRunDir(directory: string): Promise<string> {
  await mkdir(directory, { recursive: true });
  const path = await realpath(directory);
  const pidFile = join(path, "up.pid");
  if (!(await bindAbstract(`layercast-up-${createHash("sha256").update(path).digest("hex")}`))) {
    const pid = (await readFile(pidFile, "utf8").catch(() => "unknown")).trim();
    throw new LayercastError(
      "invalid_request",
      `${path} belongs to a \`layercast up\` that is running (pid ${pid}): stop that one, or give another --run-dir`,
      { path, pid },
    );
  }
  await writeFile(pidFile, `${process.pid}\n`);
  return path;
}

/** False when the name is taken. */
function bindAbstract(name: string): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => socket.destroy());
    server.unref();
    server.once("error", (error: NodeJS.ErrnoException) =>
      error.code === "EADDRINUSE" ? resolve(false) : reject(error),
    );
    server.listen(`\0${name}`, () => resolve(true));
  });
}
