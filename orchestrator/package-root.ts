// Where this package lies, whether its TypeScript sources run or what was built from them.

import { existsSync } from "node:fs";
import { dirname, join } from "node:path";

export function packageRoot(): string {
  let directory = import.meta.dirname;
  while (!existsSync(join(directory, "package-lock.json"))) {
    const parent = dirname(directory);
    if (parent === directory) throw new Error(`no package-lock.json above ${import.meta.dirname}`);
    directory = parent;
  }
  return directory;
}
