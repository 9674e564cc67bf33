// A request's JSON body. Names that would reach an object's prototype are refused, and told from JSON that is malformed.

import { LayercastError } from "../contract/errors.js";
import type { App } from "./app.js";

export function acceptJson(app: App): void {
  const parse = app.getDefaultJsonParser("error", "error");
  app.removeAllContentTypeParsers();
  app.addContentTypeParser("application/json", { parseAs: "string" }, (request, body, done) => {
    // Clients that always name the type send it without a body too, as in a cancel.
    if (body === "") done(null, undefined);
    else parse(request, String(body), (error, value) => done(error === null ? null : explain(String(body)), value));
  });
}

/** Why the parser refused it. */
function explain(text: string): LayercastError {
  try {
    return refusedName(prototypeName(JSON.parse(text.replace(/^\uFEFF/, ""))));
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    return new LayercastError(
      "invalid_request",
      `the request's body is not valid JSON: ${reason.slice(0, MOST_SHOWN)}`,
    );
  }
}

/** The engine quotes a little of the text. */
const MOST_SHOWN = 200;

function refusedName(name: string): LayercastError {
  const sentence = `the request's body has an object with the key ${name}, which is refused wherever it stands: leave it out`;
  return new LayercastError("invalid_request", sentence, { in: "body", key: name });
}

/** Without a call a level: a body may be nested as deep as it is long. */
function prototypeName(body: unknown): string {
  const rest = [body];
  while (rest.length > 0) {
    const value = rest.pop();
    if (typeof value !== "object" || value === null) continue;
    if (Object.hasOwn(value, "__proto__")) return "__proto__";
    for (const one of Object.values(value)) rest.push(one);
  }
  return "constructor with a key prototype in it";
}
