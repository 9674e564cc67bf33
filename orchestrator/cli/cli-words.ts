// An error of the API in the words of the command line: flags in place of fields, commands in place of routes. Only what is printed
// for people; --json gives the API's own words.

import type { ErrorReport } from "../contract/errors.js";

/** Fields of a request's body that have a flag. */
const FLAGS: Readonly<Record<string, string>> = {
  "source.uri": "--source",
  "recipe.scheme": "--recipe",
  "recipe.ignore": "--ignore",
  "install.mode staged": "no --in-place",
  "install.mode": "--in-place",
  "install.staging": "--staging",
  "install.allow_new_layout": "--allow-new-layout",
  "install.allow_non_finite": "--allow-non-finite",
  "policy.coalesce": "--coalesce",
  "policy.priority": "--priority",
  "policy.deadline_ms": "--deadline",
  "policy.layers_per_job": "--layers-per-job",
  submission_id: "--submission-id",
  weight_version: "--weight-version",
  to_weight_version: "--to",
  expected_weight_version: "--expect",
  tensor_parallel_size: "--tp",
  expert_parallel: "--ep",
  retain_export: "--retain-export",
  max_pending_buckets: "--max-pending-buckets",
  max_buffer_bytes: "--max-buffer-bytes",
  warn_buffer_bytes: "--warn-buffer-bytes",
  clear_cache: "--keep-cache",
  on_failure: "--on-failure",
};

/** Not as a part of a path or of a longer name; a flag says `: true` by being there. */
const FIELD = new RegExp(
  `(?<![\\w./-])(${Object.keys(FLAGS)
    .sort((a, b) => b.length - a.length)
    .map((field) => field.replaceAll(".", "\\."))
    .join("|")})(?:: true)?(?![\\w/-])`,
  "g",
);

const ROUTES: readonly [route: RegExp, command: string][] = [
  [/`?PUT \/v1\/fleets\/([^/\s`]+)\/hooks`?/g, "`layercast hooks set --fleet $1`"],
  [/`?GET \/v1\/fleets(?![\w/])`?/g, "`layercast fleet`"],
  [/`?GET \/v1\/reloads(?![\w/])`?/g, "`layercast status`"],
  [/`?GET \/readyz`?/g, "`layercast fleet`"],
];

/** "CODE: SENTENCE". */
export function errorWords({ code, message, details }: Pick<ErrorReport, "code" | "message" | "details">): string {
  return `${code}: ${sentenceFor(code, message, details)}`;
}

function sentenceFor(code: string, message: string, details: ErrorReport["details"]): string {
  // Of the two ways to be refused this is the one without a host in its details.
  if (code === "unauthorized" && details.host === undefined) {
    return "This orchestrator asks for a token: set LAYERCAST_TOKEN to it, or LAYERCAST_TOKEN_FILE to a file that holds it.";
  }
  const fields = code === "invalid_request" ? fieldMessages(details.errors) : [];
  return inCliWords(fields.length > 1 ? fields.join("; ") : message);
}

/** What a failed validation says of each field. */
function fieldMessages(errors: unknown): string[] {
  if (!Array.isArray(errors)) return [];
  return errors.flatMap((one: { message?: unknown }) => (typeof one?.message === "string" ? [one.message] : []));
}

export function inCliWords(sentence: string): string {
  const withCommands = ROUTES.reduce((text, [route, command]) => text.replace(route, command), sentence);
  return withCommands.replace(FIELD, (_, field: string) => FLAGS[field] ?? field);
}
