// Rows to a table for people: what, the numbers, and beside them whether the work was right.

import { availableParallelism, cpus, release, totalmem } from "node:os";
import type { Case, Column, Row } from "./case.js";

export interface Machine {
  cpu: string;
  cores: number;
  memory_bytes: number;
  kernel: string;
  node: string;
}

export function describeMachine(): Machine {
  return {
    cpu: cpus()[0]?.model.trim() ?? "unknown",
    cores: availableParallelism(),
    memory_bytes: totalmem(),
    kernel: release(),
    node: process.version,
  };
}

export function machineLine({ cpu, cores, memory_bytes, kernel, node }: Machine): string {
  return `${cpu}, ${cores} cores, ${(memory_bytes / 2 ** 30).toFixed(0)} GiB, Linux ${kernel}, Node ${node}`;
}

export function tableOf({ name, says, columns }: Case, rows: readonly Row[]): string[] {
  const cells = [
    ["", ...columns.map(({ title }) => title), "correct"],
    ...rows.map((row) => [row.what, ...columns.map((column) => cellOf(row, column)), verdictOf(row)]),
  ];
  const widths = cells[0]?.map((_, column) => Math.max(...cells.map((line) => line[column]?.length ?? 0))) ?? [];
  const lines = cells.map((line) =>
    line
      .map((cell, column) =>
        isText(column, line) ? cell.padEnd(widths[column] ?? 0) : cell.padStart(widths[column] ?? 0),
      )
      .join("  ")
      .trimEnd(),
  );
  return [`${name}: ${says}`, ...lines, ...rows.flatMap(failuresOf)];
}

function isText(column: number, line: readonly string[]): boolean {
  return column === 0 || column === line.length - 1;
}

function cellOf({ values }: Row, { key, decimals = 1 }: Column): string {
  return values[key]?.toFixed(decimals) ?? "";
}

function verdictOf({ checks }: Row): string {
  if (checks.length === 0) return "";
  const holding = checks.filter(({ holds }) => holds).length;
  return holding === checks.length ? `yes (${checks.map(({ law }) => law).join(", ")})` : "NO";
}

function failuresOf({ what, checks }: Row): string[] {
  return checks.filter(({ holds }) => !holds).map(({ law, found }) => `  WRONG: ${what}: ${law}: ${found}`);
}
