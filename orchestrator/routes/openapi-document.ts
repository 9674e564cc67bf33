// The routes' schemas as a document that clients are generated from. What the server does is the same; it is said in words that
// generators know.

import type { PUSH_FIELDS } from "../contract/push.js";
import { SourceBody } from "../contract/reload.js";
import { VERSION } from "../host/version.js";

export const INFO = {
  title: "Layercast",
  version: VERSION,
  description:
    "Puts new weights into a running inference fleet: all ranks or none. Errors are RFC 9457 problems with a stable `code`.",
  license: { name: "Apache-2.0", identifier: "Apache-2.0" },
};

/** Relative: the document is served by the API itself. */
export const SERVERS = [{ url: "/" }];

/** Of an OpenAPI document, what is made by name. */
interface Components {
  components?: { schemas?: Record<string, unknown> };
}

export function forClients(document: object): unknown {
  const { components } = document as Components;
  const schemas = { ...components?.schemas, ...sourceByKind() };
  return sayDefaults({ ...document, components: { ...components, schemas } });
}

/** One schema a kind of source. The server's own is a single one, for its errors name the field that does not go with the kind. */
function sourceByKind(): Record<string, unknown> {
  const { kind: _, uri, ...push } = SourceBody.properties;
  const kinds = {
    safetensors: closedObject("safetensors", { uri }, ["uri"]),
    push: closedObject("push", push satisfies Record<keyof typeof PUSH_FIELDS, unknown>, ["config"]),
  };
  const names = { safetensors: "SafetensorsSource", push: "PushSource" } as const;
  const reference = (kind: keyof typeof names) => `#/components/schemas/${names[kind]}`;
  const mapping = { safetensors: reference("safetensors"), push: reference("push") };
  return {
    [names.safetensors]: kinds.safetensors,
    [names.push]: kinds.push,
    Source: {
      oneOf: Object.values(mapping).map(($ref) => ({ $ref })),
      discriminator: { propertyName: "kind", mapping },
    },
  };
}

function closedObject(kind: string, properties: Record<string, unknown>, required: string[]) {
  return {
    type: "object",
    properties: { kind: { type: "string", const: kind }, ...properties },
    required: ["kind", ...required],
    additionalProperties: false,
  };
}

/**
 * Generators make a field with a default one that must be there, as it is in an answer; in a request it is one that need not be. So
 * the default is said in the description.
 */
function sayDefaults(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sayDefaults);
  if (typeof value !== "object" || value === null) return value;
  const { default: fallback, ...rest } = isParameterWithDefault(value)
    ? { ...value, required: false }
    : (value as Described);
  const said = Object.fromEntries(Object.entries(rest).map(([key, inner]) => [key, sayDefaults(inner)]));
  if (fallback === undefined || isResponses(value)) return "default" in value ? { ...said, default: fallback } : said;
  const text = `Default: \`${JSON.stringify(fallback)}\`.`;
  return { ...said, description: typeof said.description === "string" ? `${said.description}. ${text}` : text };
}

/** Of a query: it need not be given. */
function isParameterWithDefault(value: object): boolean {
  const { in: place, schema } = value as { in?: unknown; schema?: unknown };
  return place === "query" && typeof schema === "object" && schema !== null && "default" in schema;
}

type Described = Record<string, unknown>;

/** The answers of an operation, where `default` is any other status. */
function isResponses(value: object): boolean {
  return "200" in value || "202" in value;
}
