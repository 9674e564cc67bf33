// The contract's schemas as Fastify and OpenAPI want them: each named schema once, referred to by name wherever it is used,
// and the problem answers of a route from the error codes that it can give.

import { type Static, type TSchema, Type } from "typebox";
import { ERRORS, type ErrorCode } from "../contract/errors.js";
import { HooksAnswer, HooksBody } from "../contract/hooks.js";
import { BucketAnswer, BucketBody, ExpectedTensorsAnswer } from "../contract/push.js";
import {
  ExportAnswer,
  ExportBody,
  FleetAnswer,
  FleetListAnswer,
  PlanAnswer,
  PlanBody,
  ProblemAnswer,
  ReloadAnswer,
  ReloadListAnswer,
  RollbackBody,
  RoutableAnswer,
  SourceBody,
  SubmitBody,
} from "../contract/reload.js";
import { PROBLEM_TYPE } from "./problem.js";

const NAMED: readonly TSchema[] = [
  SourceBody,
  SubmitBody,
  PlanBody,
  RollbackBody,
  HooksBody,
  ExportBody,
  ReloadAnswer,
  ReloadListAnswer,
  PlanAnswer,
  FleetAnswer,
  FleetListAnswer,
  RoutableAnswer,
  HooksAnswer,
  ExportAnswer,
  BucketBody,
  BucketAnswer,
  ExpectedTensorsAnswer,
  ProblemAnswer,
];

/**
 * Every named schema as the outside meets it: a named one inside another is a reference, and a field with a default need
 * not be sent (the contract's types are of what has been filled in).
 */
export const SCHEMAS: readonly TSchema[] = NAMED.map((schema) => asSent(schema) as TSchema);

/** The schema by name, with its type. */
export function ref<Schema extends TSchema & { $id?: string }>(schema: Schema) {
  return Type.Unsafe<Static<Schema>>({ $ref: `${schema.$id}#` });
}

/** Any route under /v1 can give these. */
const COMMON_CODES = ["unauthorized", "redis_unavailable", "internal"] as const satisfies ErrorCode[];

/** A route's `response` entries for its errors, by status. Typed as nothing: handlers throw errors, they do not send them. */
export function problems(...codes: ErrorCode[]): object {
  const byStatus = new Map<number, ErrorCode[]>();
  for (const code of new Set([...codes, ...COMMON_CODES])) {
    const { status } = ERRORS[code];
    byStatus.set(status, [...(byStatus.get(status) ?? []), code]);
  }
  return Object.fromEntries([...byStatus].map(([status, those]) => [status, problemAnswer(those)]));
}

function problemAnswer(codes: readonly ErrorCode[]): object {
  const description = codes.map((code) => `\`${code}\`: ${ERRORS[code].title}`).join("; ");
  return { description, content: { [PROBLEM_TYPE]: { schema: ref(ProblemAnswer) } } };
}

/** An answer that is not JSON. */
export function textAnswer(contentType: string, description: string): object {
  return { description, content: { [contentType]: { schema: Type.String() } } };
}

interface SchemaObject {
  $id?: unknown;
  required?: string[];
  properties?: Record<string, object>;
}

function asSent(value: unknown, depth = 0): unknown {
  if (Array.isArray(value)) return value.map((item) => asSent(item, depth + 1));
  if (typeof value !== "object" || value === null) return value;
  const { $id, required, properties } = value as SchemaObject;
  if (depth > 0 && typeof $id === "string") return { $ref: `${$id}#` };
  const copy = Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, asSent(inner, depth + 1)]));
  if (!Array.isArray(required)) return copy;
  return { ...copy, required: required.filter((name) => !("default" in (properties?.[name] ?? {}))) };
}

/** Names in URLs; the contract's rule for names, so that a bad one is refused before anything is looked up. */
const pathName = (description: string) =>
  Type.String({ minLength: 1, maxLength: 100, pattern: "^[A-Za-z0-9][A-Za-z0-9._-]*$", description });

export const ReloadParams = Type.Object({ id: pathName("Reload id") });
export const BucketParams = Type.Object({
  id: pathName("Reload id"),
  bucket: Type.Integer({ minimum: 0, maximum: 2 ** 31 - 1, description: "The bucket's number" }),
});
export const FleetParams = Type.Object({ fleet: pathName("Fleet name") });
export const ExportParams = Type.Object({
  fleet: pathName("Fleet name"),
  export: pathName("`export_id` of the export's answer"),
});
export const ReplicaParams = Type.Object({
  fleet: pathName("Fleet name"),
  replica: Type.Integer({ minimum: 0, description: "Counted from 0" }),
});
export const closed = { additionalProperties: false } as const;
