// Request validation: TypeBox schemas -> Ajv validators that fill in defaults and refuse unknown fields, and Ajv's errors
// -> one `invalid_request` whose sentence and details.errors name each bad field. Only what stands in a URL is coerced
// ("10" -> 10): a JSON body has types of its own.

import { Ajv, type ErrorObject, type ValidateFunction } from "ajv";
import type { FastifySchemaCompiler, FastifySchemaValidationError } from "fastify";
import type { TSchema } from "typebox";
import { LayercastError } from "../contract/errors.js";

/** Of a body with more values than this, the first bad field is named alone. */
const MANY_VALUES = 100_000;
/** More than this many bad fields are counted, not listed. */
const MAX_LISTED_ERRORS = 20;

export function validatorCompiler(schemas: readonly TSchema[]): FastifySchemaCompiler<TSchema> {
  // `verbose` gives the offending value and the schema beside each error, which the sentences quote.
  const options = {
    useDefaults: true,
    removeAdditional: false,
    allErrors: true,
    verbose: true,
    validateFormats: false,
  };
  const body = new Ajv({ ...options, coerceTypes: false });
  const bodyToFirst = new Ajv({ ...options, coerceTypes: false, allErrors: false });
  const url = new Ajv({ ...options, coerceTypes: true });
  for (const one of [body, bodyToFirst]) for (const schema of schemas) one.addSchema(schema);
  return ({ schema, httpPart }) =>
    httpPart === "body" ? boundErrors(body.compile(schema), bodyToFirst.compile(schema)) : url.compile(schema);
}

/** Every value may be an error, which is larger than the value: of a body with very many values the first says enough. */
function boundErrors(toLast: ValidateFunction, toFirst: ValidateFunction) {
  return (body: unknown) => {
    if (toFirst(body)) return true;
    if (hasManyValues(body)) return { error: toFirst.errors ?? [] };
    return toLast(body) || { error: toLast.errors ?? [] };
  };
}

/** Without a call a level: a body may be nested as deep as it is long. */
function hasManyValues(body: unknown): boolean {
  const rest = [body];
  for (let count = 0; rest.length > 0; count++) {
    const value = rest.pop();
    if (typeof value !== "object" || value === null) continue;
    const inner: unknown[] = Array.isArray(value) ? value : Object.values(value);
    if (count + rest.length + inner.length > MANY_VALUES) return true;
    for (const one of inner) rest.push(one);
  }
  return false;
}

interface FieldError {
  path: string;
  message: string;
}

/** Fastify's type leaves out what Ajv's `verbose` adds. */
export function explainValidation(found: readonly FastifySchemaValidationError[], part: string): LayercastError {
  const all = withoutBranches(found as readonly ErrorObject[]).map(explain);
  const errors = all.slice(0, MAX_LISTED_ERRORS);
  const [first] = errors;
  const more = all.length > 1 ? ` (and ${all.length - 1} more: see details.errors)` : "";
  const where = part === "querystring" ? "query" : part;
  return new LayercastError(
    "invalid_request",
    `the request's ${where} is not valid: ${first?.message ?? "it does not match the schema"}${more}`,
    { in: where, errors },
  );
}

/** A failed anyOf also reports each branch: what it adds is said by the anyOf itself. */
function withoutBranches(errors: readonly ErrorObject[]): ErrorObject[] {
  const unions = errors.filter((error) => error.keyword === "anyOf").map((error) => `${error.schemaPath}/`);
  // What a failed condition demands, or the rule for a name, is said by the errors beside it.
  const said = errors.filter((error) => error.keyword !== "if" && error.keyword !== "propertyNames");
  return said.filter((error) => !unions.some((path) => error.schemaPath.startsWith(path)));
}

function explain(error: ErrorObject): FieldError {
  const at = error.instancePath.split("/").slice(1).map(unescapePointer);
  const inside = (name: unknown) => [...at, String(name)].join(".");
  if (error.keyword === "additionalProperties") {
    const path = inside(error.params.additionalProperty);
    const known = Object.keys((error.parentSchema?.properties as object | undefined) ?? {});
    return { path, message: `${path} is not a known field; known here: ${known.join(", ") || "none"}` };
  }
  if (error.keyword === "required") {
    const path = inside(error.params.missingProperty);
    return { path, message: `${path} is missing` };
  }
  if (error.propertyName !== undefined) {
    const path = inside(error.propertyName);
    return { path, message: `the name ${quote(error.propertyName)} in ${at.join(".")} ${rule(error)}` };
  }
  const path = at.join(".");
  if (error.keyword === "false schema") return { path, message: `${path} does not go with the other fields beside it` };
  return { path, message: `${path === "" ? "it" : path} is ${quote(error.data)}, but ${rule(error)}` };
}

function rule(error: ErrorObject): string {
  switch (error.keyword) {
    case "enum":
      return `must be one of ${(error.params.allowedValues as unknown[]).join(", ")}`;
    case "const":
      return `must be ${quote(error.params.allowedValue)}`;
    case "anyOf":
      return `must be ${((error.schema as unknown[]) ?? []).map(describeBranch).join(" or ")}`;
    default:
      return error.message ?? "is not valid";
  }
}

function describeBranch(branch: unknown): string {
  const { type, enum: names, minimum } = branch as { type?: string; enum?: unknown[]; minimum?: number };
  if (names !== undefined) return names.map(quote).join(" or ");
  return `${type ?? "another value"}${minimum === undefined ? "" : ` >= ${minimum}`}`;
}

function quote(value: unknown): string {
  if (typeof value === "object" && value !== null) return Array.isArray(value) ? "an array" : "an object";
  const text = JSON.stringify(value) ?? "missing";
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}

function unescapePointer(part: string): string {
  return part.replaceAll("~1", "/").replaceAll("~0", "~");
}
