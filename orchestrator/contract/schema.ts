// The pieces that the contract's schemas are written with.

import { type TOptional, type TSchema, Type } from "typebox";

export function oneOf<const Names extends readonly string[]>(names: Names, options: object = {}) {
  return Type.Unsafe<Names[number]>({ type: "string", enum: [...names], ...options });
}

export const closed = { additionalProperties: false } as const;

export const nullable = <Schema extends TSchema>(schema: Schema) => Type.Union([schema, Type.Null()]);

/** The same fields, none of which must be there. */
export function optional<Fields extends Record<string, TSchema>>(fields: Fields) {
  const made = Object.entries(fields).map(([name, schema]) => [name, Type.Optional(schema)]);
  return Object.fromEntries(made) as { [Name in keyof Fields]: TOptional<Fields[Name]> };
}
