// The native core that was built here, where `npm pack` and the worker's image take it from, for machines of this kind that have no
// compiler. It needs a C library at least as new as this machine's; where it cannot be loaded, the package builds another at install.

import { copyFileSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const native = dirname(fileURLToPath(import.meta.url));
const folder = join(native, "prebuilt", `${process.platform}-${process.arch}`);
mkdirSync(folder, { recursive: true });
for (const name of ["layercast.node", "layercast-holder", "layercast_cuda.so"]) {
  const built = join(native, "build", "Release", name);
  if (existsSync(built)) replace(built, join(folder, name));
  else rmSync(join(folder, name), { force: true });
}

/** Never in place: a process may have it mapped. */
function replace(from, to) {
  if (existsSync(to) && readFileSync(from).equals(readFileSync(to))) return;
  copyFileSync(from, `${to}.${process.pid}`);
  renameSync(`${to}.${process.pid}`, to);
}
