// pino as JSON lines on stdout, with every secret taken out of the finished line: header fields by name, and passwords and
// tokens wherever they stand (a Redis URL in a message, a command's arguments in an error). A line about one reload, rank
// or layer carries those as fields: `log.child({ reload, rank, layer })`.

import { type DestinationStream, type Logger, pino } from "pino";
import type { LogLevel } from "./config.js";
import { redisPlace } from "./redis.js";
import { openRedisNotices } from "./redis-notices.js";
import { redisTrouble } from "./redis-trouble.js";

export interface LogOptions {
  /** Which kind of process writes. */
  name: "orchestrator" | "worker";
  logLevel: LogLevel;
  redisUrl: string | null;
  token: string | null;
}

const HIDDEN = "[hidden]";

export function createLog(options: LogOptions, destination: DestinationStream = pino.destination(1)): Logger {
  const secrets = [options.token, redisPassword(options.redisUrl)].filter((secret) => secret !== null);
  const notices = openRedisNotices(redisPlace(options.redisUrl ?? ""), (level, words) => log[level](words));
  const log: Logger = pino(
    {
      name: options.name,
      level: options.logLevel,
      timestamp: pino.stdTimeFunctions.isoTime,
      redact: { paths: SECRET_PATHS, censor: HIDDEN },
      hooks: {
        streamWrite: (line) => hideSecrets(line, secrets),
        // Of a Redis that does not serve there are notices instead of lines, whoever met it.
        logMethod(given, write) {
          const trouble = redisTrouble((given[0] as { err?: unknown } | undefined)?.err);
          if (trouble === null) write.apply(this, given);
          else notices.note(trouble);
        },
      },
    },
    destination,
  );
  return log;
}

const SECRET_PATHS = [
  "authorization",
  "token",
  "password",
  "headers.authorization",
  "headers.cookie",
  "*.headers.authorization",
  "*.headers.cookie",
  "*.token",
  "*.password",
  "err.command.args",
];

function hideSecrets(line: string, secrets: readonly string[]): string {
  const shown = line
    .replace(/(rediss?:\/\/[^:@/\s"]*:)[^@\s"]+@/g, `$1${HIDDEN}@`)
    .replace(/(Bearer\s+)[A-Za-z0-9._~+/-]+=*/gi, `$1${HIDDEN}`);
  return secrets.reduce((text, secret) => text.replaceAll(JSON.stringify(secret).slice(1, -1), HIDDEN), shown);
}

/** A password so short that it is part of ordinary words would blank out half the log; the URL rule still hides it. */
const SHORTEST_SECRET = 6;

function redisPassword(url: string | null): string | null {
  const encoded = url === null ? undefined : /^rediss?:\/\/[^:@/]*:([^@]+)@/.exec(url)?.[1];
  if (encoded === undefined) return null;
  const password = decodeURIComponent(encoded);
  return password.length < SHORTEST_SECRET ? null : password;
}
