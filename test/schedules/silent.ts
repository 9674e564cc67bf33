// A log that nobody reads: schedules tell their own story.

import type { Logger } from "pino";

const nothing = () => {};

export const SILENT = {
  trace: nothing,
  debug: nothing,
  info: nothing,
  warn: nothing,
  error: nothing,
  fatal: nothing,
  child: () => SILENT,
} as unknown as Logger;
