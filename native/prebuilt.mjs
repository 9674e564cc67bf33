// Before `npm pack`: the native core that was built here goes into the package, for machines of this kind that have no compiler.
// It needs a C library at least as new as this machine's; where it cannot be loaded, the package builds another at install.

import { cpSync, existsSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const native = dirname(fileURLToPath(import.meta.url));
const folder = join(native, "prebuilt");
rmSync(folder, { recursive: true, force: true });
for (const name of ["layercast.node", "layercast-holder", "layercast_cuda.so"]) {
  const built = join(native, "build", "Release", name);
  if (existsSync(built)) cpSync(built, join(folder, `${process.platform}-${process.arch}`, name));
}
