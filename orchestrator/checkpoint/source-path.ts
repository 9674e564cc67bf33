// Turns a source's uri into the real directory it names, and decides whether it may be read: symbolic links are resolved
// first, then the real path must lie under one of the allowed roots. A path outside is refused the same way whether or not
// something is there.

import { realpath } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { LayercastError } from "../contract/errors.js";
import { quoted } from "./strict-json.js";

export interface AllowedRoots {
  readonly given: readonly string[];
  /** Symbolic links resolved; roots that are not there are left out. */
  readonly real: readonly string[];
}

export async function resolveRoots(roots: readonly string[]): Promise<AllowedRoots> {
  const real = await Promise.all(roots.map((root) => realpath(root).catch(() => null)));
  return { given: roots.map((root) => path.resolve(root)), real: real.filter((root) => root !== null) };
}

/** The absolute path that `uri`, a file:// URI or an absolute path, names. */
export function pathOfUri(uri: string): string {
  if (uri.startsWith("file://")) {
    try {
      const named = fileURLToPath(uri);
      if (!named.includes("\0")) return path.normalize(named);
    } catch {
      // Falls through to the one sentence below.
    }
  } else if (path.isAbsolute(uri) && !uri.includes("\0")) {
    return path.normalize(uri);
  }
  throw new LayercastError(
    "invalid_request",
    `source.uri is ${quoted(uri)}; it must be an absolute path or a file:// URI of a directory on this machine.`,
    { uri },
  );
}

/** The real path of `named`, or `source_not_found`, or `source_not_allowed`. */
export async function resolveAllowed(named: string, roots: AllowedRoots): Promise<string> {
  let real: string;
  try {
    real = await realpath(named);
  } catch (error) {
    if (isUnder(named, roots.given) || isUnder(named, roots.real)) throw sourceError(named, error);
    throw notAllowed(named, roots);
  }
  if (!isUnder(real, roots.real)) throw notAllowed(named, roots);
  return real;
}

/** A failed file system call on a source, as what it means for the reload. */
export function sourceError(file: string, error: unknown): LayercastError {
  const errno = (error as { code?: unknown }).code;
  if (typeof errno === "string" && GONE.has(errno))
    return new LayercastError(
      "source_not_found",
      `${file} cannot be read (${errno}). Check that it exists on this machine and may be read.`,
      { file, errno },
      error,
    );
  return new LayercastError("io_error", `Reading ${file} failed: ${String(error)}.`, { file }, error);
}

function notAllowed(named: string, roots: AllowedRoots): LayercastError {
  return new LayercastError(
    "source_not_allowed",
    `${named} lies outside the directories that may be read (${roots.given.join(", ") || "none"}). ` +
      "Move it there, or start the orchestrator with --source-root.",
    { path: named },
  );
}

function isUnder(candidate: string, roots: readonly string[]): boolean {
  return roots.some((root) => {
    const relative = path.relative(root, candidate);
    return relative === "" || (relative !== ".." && !relative.startsWith(`..${path.sep}`));
  });
}

const GONE = new Set(["ENOENT", "ENOTDIR", "EACCES", "EPERM", "ELOOP", "ENAMETOOLONG", "EISDIR"]);
