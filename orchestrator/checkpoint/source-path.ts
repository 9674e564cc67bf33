// Turns a source's uri into the real directory it names, and decides whether it may be read: symbolic links are resolved
// first, then the real path must lie under one of the allowed roots. A path outside is refused the same way whether or not
// something is there; of a path inside that a link leads out of, the link is named.

import { type FileHandle, lstat, readlink, realpath } from "node:fs/promises";
import { hostname } from "node:os";
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
    `${quoted(uri)} is not an absolute path or a file:// URI. ${downloadAdvice(uri) ?? "Give the directory's absolute path."}`,
    { uri },
  );
}

/** For a source that names something of a hub or an object store: `hf://...`, `s3://...`, `organization/model`; null for others. */
export function downloadAdvice(source: string): string | null {
  const [, scheme = "hf", rest = source] = /^([a-z][a-z0-9+.-]*):\/\/(.*)/i.exec(source) ?? [];
  const isRepository = scheme.toLowerCase() === "hf" && /^[\w-][\w.-]*\/[\w-][\w.-]*$/.test(rest);
  if (scheme.toLowerCase() === "file" || (rest === source && !isRepository)) return null;
  return (
    "A source is a directory of this machine's file system, or a push; nothing is downloaded. Download it first" +
    `${isRepository ? `, such as with \`hf download ${rest} --local-dir DIRECTORY\`,` : ""} and give the directory that it lies in.`
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
  if (isUnder(real, roots.real)) return real;
  const link = await linkOutOf(named, roots);
  throw link === null ? notAllowed(named, roots) : linkNotAllowed(named, link, roots);
}

/**
 * Between the look at a path and its opening somebody may put a link in the place of one of its directories: what was opened
 * must itself lie under a root. Closes the file otherwise.
 */
export async function requireOpenedUnder(handle: FileHandle, path: string, roots: AllowedRoots): Promise<void> {
  const opened = await readlink(`/proc/self/fd/${handle.fd}`).catch(() => null);
  if (opened !== null && isUnder(opened, roots.real)) return;
  await handle.close();
  throw notAllowed(path, roots);
}

interface Link {
  path: string;
  /** As the link has it. */
  target: string;
}

/** The last link on the way to `named` that lies under a root itself. What a root's own files say is no secret. */
async function linkOutOf(named: string, roots: AllowedRoots): Promise<Link | null> {
  for (let at = named; path.dirname(at) !== at; at = path.dirname(at)) {
    const parent = await realpath(path.dirname(at)).catch(() => null);
    if (parent === null || !isUnder(path.join(parent, path.basename(at)), roots.real)) continue;
    const isLink = await lstat(at).then(
      (found) => found.isSymbolicLink(),
      () => false,
    );
    if (isLink) return { path: at, target: await readlink(at) };
  }
  return null;
}

/** A failed file system call on a source, as what it means for the reload. */
export function sourceError(file: string, error: unknown): LayercastError {
  const errno = (error as { code?: unknown }).code;
  if (typeof errno === "string" && GONE.has(errno))
    return new LayercastError(
      "source_not_found",
      `${file} cannot be read on host ${hostname()} (${errno}). Check that it exists there, under this path, and may be read.`,
      { file, errno, host: hostname() },
      error,
    );
  const host = hostname();
  return new LayercastError(
    "io_error",
    `Reading ${file} on host ${host} failed: ${String(error)}.`,
    { file, host },
    error,
  );
}

/** A snapshot of the Hugging Face cache is such a directory: its files are links to ../../blobs. */
function linkNotAllowed(named: string, link: Link, roots: AllowedRoots): LayercastError {
  const cache = /^(.*\/models--[^/]+)\/snapshots\//.exec(link.path)?.[1];
  const advice =
    cache === undefined
      ? "Start the orchestrator with a --source-root that holds both, or put what it leads to in its place."
      : `It is of a snapshot of the Hugging Face cache, whose files lie in ${cache}/blobs: start the orchestrator with --source-root ${cache}.`;
  return new LayercastError(
    "source_not_allowed",
    `${link.path} is a symbolic link to ${link.target}, which leads out of the directories that may be read ` +
      `(${roots.given.join(", ")}). ${advice}`,
    { path: named, link: link.path, target: link.target },
  );
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
