// What people read on the command line has its flags and commands in it, whatever the API calls them.

import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { errorWords, inCliWords } from "../../orchestrator/cli/cli-words.js";
import { packageRoot } from "../../orchestrator/host/package-root.js";

const say = (message: string, code = "invalid_request", details = {}) =>
  errorWords({ code: code as "invalid_request", message, details });

/** A field with a section of the body before it, or a route. */
const API_WORDS = /\b(?:install|policy|recipe)\.[a-z_]+|\b(?:GET|PUT|POST|DELETE) \/[a-z0-9/_]+/g;

describe("an error on the command line", () => {
  it.each([
    ["Submit with install.allow_new_layout: true; consumers must", "Submit with --allow-new-layout; consumers must"],
    ["or submit with install.allow_non_finite.", "or submit with --allow-non-finite."],
    ['submit with policy.coalesce "latest"', 'submit with --coalesce "latest"'],
    ["give tensor_parallel_size, or a fleet", "give --tp, or a fleet"],
    ["there is no fleet f; list them with GET /v1/fleets", "there is no fleet f; list them with `layercast fleet`"],
    ["no reload r; list them with GET /v1/reloads.", "no reload r; list them with `layercast status`."],
    ["set them with PUT /v1/fleets/f/hooks", "set them with `layercast hooks set --fleet f`"],
  ])("names the flag or the command: %s", (message, words) => {
    expect(inCliWords(message)).toBe(words);
  });

  it.each([
    "/ckpt/install.mode/model.safetensors is truncated.",
    "The config has my_weight_version and resource.uri.",
    "GET /v1/fleets/f/routable answered 409.",
  ])("leaves what only looks like it: %s", (message) => {
    expect(inCliWords(message)).toBe(message);
  });

  it("asks for a token in the way in which one is given here", () => {
    expect(say("send `Authorization: Bearer TOKEN`", "unauthorized")).toBe(
      "unauthorized: This orchestrator asks for a token: set LAYERCAST_TOKEN to it, or LAYERCAST_TOKEN_FILE to a file that holds it.",
    );
    expect(say("this came for host x", "unauthorized", { host: "x" })).toBe("unauthorized: this came for host x");
  });

  it("lists every field that is not valid, for nobody sees the details", () => {
    const errors = [
      { path: "policy.priority", message: 'policy.priority is "x", but must be integer' },
      { path: "weight_version", message: "weight_version is missing" },
    ];
    expect(say("the first (and 1 more: see details.errors)", "invalid_request", { errors })).toBe(
      'invalid_request: --priority is "x", but must be integer; --weight-version is missing',
    );
  });

  it("has no field and no route left of any sentence in the sources", () => {
    const left = ["orchestrator", "worker"]
      .flatMap(sentencesIn)
      .flatMap((text) => inCliWords(text).match(API_WORDS) ?? []);
    expect([...new Set(left)]).toEqual([]);
  });
});

/** Texts of string and template literals with a space in them; descriptions are the API's own documentation. */
function sentencesIn(folder: string): string[] {
  return readdirSync(join(packageRoot(), folder), { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".ts") && !file.startsWith("cli/"))
    .flatMap((file) => readFileSync(join(packageRoot(), folder, file), "utf8").split("\n"))
    .filter((line) => !/^\s*(\/\/|\*|\/\*\*)|description:|summary:/.test(line))
    .flatMap((line) => line.match(/"(?:[^"\\]|\\.)* (?:[^"\\]|\\.)*"|`[^`]* [^`]*`?/g) ?? [])
    .map((literal) => literal.replace(/\$\{[^}]*\}/g, "x"));
}
