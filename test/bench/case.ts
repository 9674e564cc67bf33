// What a case of the benchmark is, and what it hands to the harness: rows of numbers, each row with the checks that say
// whether the work behind its numbers was right.

import type { Scheme } from "../../orchestrator/contract/recipe.js";

export interface Case {
  name: string;
  /** One line: what is timed. */
  says: string;
  columns: readonly Column[];
  run(setting: Setting): Promise<Row[]>;
}

export interface Column {
  /** In the JSON. */
  key: string;
  /** In the table. */
  title: string;
  decimals?: number;
}

export interface Row {
  what: string;
  values: Record<string, number | null>;
  checks: Check[];
}

export interface Check {
  /** What must hold. */
  law: string;
  holds: boolean;
  /** What was found, when it does not hold. */
  found: string | null;
}

export interface Setting {
  /** null: as many as the case asks for. */
  reloads: number | null;
  /** A directory of this case's own, removed afterwards. */
  directory: string;
  /** As of `layercast up --device`. */
  device: string;
  tp: number;
  recipes: readonly Scheme[];
  /** A command that does the same work another way; null: none. */
  peer: string | null;
  /** The Python that has vLLM, for engines. */
  python: string;
  /** Of a case with many rows: those to run; null: all. */
  match: RegExp | null;
  /** Progress, for people. */
  say(line: string): void;
}

export function check(law: string, wrong: readonly string[]): Check {
  return { law, holds: wrong.length === 0, found: wrong.length === 0 ? null : wrong.slice(0, 5).join("; ") };
}

export function equal<Value extends string | number>(law: string, found: Value, expected: Value): Check {
  return check(law, found === expected ? [] : [`${found}, expected ${expected}`]);
}
