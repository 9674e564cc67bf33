// Where this package lies, whether its TypeScript sources run or what was built from them, in a checkout or installed.

import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";

export interface PackageFacts {
  root: string;
  version: string;
}

/** A directory above goes by its name: an installed package lies in a project that has a package.json of its own. */
const NAME = "layercast";

export const PACKAGE: PackageFacts = findPackage(import.meta.dirname);

export function packageRoot(): string {
  return PACKAGE.root;
}

/** Looks from `directory` upwards. */
export function findPackage(directory: string): PackageFacts {
  for (let at = directory; ; at = dirname(at)) {
    const version = versionIn(at);
    if (version !== null) return { root: at, version };
    if (at === dirname(at)) throw new Error(`No package.json of ${NAME} lies above ${directory}.`);
  }
}

/** null where no package.json of ours lies. */
function versionIn(directory: string): string | null {
  const text = readOrNull(join(directory, "package.json"));
  if (text === null) return null;
  const { name, version } = JSON.parse(text) as { name?: unknown; version?: unknown };
  return name === NAME ? String(version) : null;
}

function readOrNull(file: string): string | null {
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw error;
  }
}
