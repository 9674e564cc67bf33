// Where a command reads its surroundings and writes its words; tests give their own.

export interface Terminal {
  /** A line on standard output. */
  out(line: string): void;
  /** A line on standard error. */
  err(line: string): void;
  /** Text as it is on standard output: cursor movements of the progress bars. */
  draw(text: string): void;
  /** Whether standard output is a terminal. */
  interactive: boolean;
  columns(): number;
  rows(): number;
  env: Readonly<Record<string, string | undefined>>;
}

export function processTerminal(): Terminal {
  return {
    out: (line) => process.stdout.write(`${line}\n`),
    err: (line) => process.stderr.write(`${line}\n`),
    draw: (text) => process.stdout.write(text),
    interactive: process.stdout.isTTY === true && process.env.TERM !== "dumb",
    // 0: a terminal that does not know its size.
    columns: () => process.stdout.columns || 80,
    rows: () => process.stdout.rows || 24,
    env: process.env,
  };
}
