// Which file is the native core: the one that was built here, else the one that the package brought; and what to type when
// there is neither.

import { existsSync, readFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";

/** This file lies in native/, or compiled in dist/native/. */
export function rootOf(folder: string): string {
  const above = dirname(folder);
  return basename(above) === "dist" ? dirname(above) : above;
}

/** null: there is none. */
export function findCore(root: string): string | null {
  const folders = [join("build", "Release"), join("prebuilt", `${process.platform}-${process.arch}`)];
  const files = folders.map((folder) => join(root, "native", folder, "layercast.node"));
  return files.find((file) => existsSync(file)) ?? null;
}

/** What native/build.mjs left at install as the reason why it built nothing; null when it never ran, or has built. */
function whyNotBuilt(root: string): string | null {
  try {
    return readFileSync(join(root, "native", "build", "why-not-built.txt"), "utf8").trim();
  } catch {
    return null;
  }
}

/** A checkout has the lock file; of an installed package npm runs no script by name. */
export function buildCommand(root: string): string {
  const isCheckout = existsSync(join(root, "package-lock.json"));
  return isCheckout ? "npm run build:native" : `node ${join(root, "native", "build.mjs")}`;
}

export function missingCoreWords(root: string): string {
  const why = whyNotBuilt(root);
  const reason = why === null ? "" : ` It was not built when the package was installed: ${why}`;
  return (
    `The native core is missing, and workers cannot run without it.${reason} To build it, type \`${buildCommand(root)}\`. ` +
    "Commands that only call an orchestrator, such as submit, push, fleet and plan, work without it."
  );
}
