// Flags and environment variables of `layercast orchestrator` -> one frozen configuration. Every setting stands here once,
// with its flag, variable, default and check; a flag wins over a variable, an empty variable counts as not set.
// What carries a secret (REDIS_URL, the token) has no flag: a flag can be read in the machine's process list.

import { BlockList, isIP } from "node:net";
import { resolve } from "node:path";
import { LayercastError } from "../contract/errors.js";
import { FILE_MODE, parseFileMode } from "./file-mode.js";
import { readToken, TOKEN_FILE_VARIABLE, TOKEN_VARIABLE } from "./token.js";

export interface OrchestratorConfig {
  readonly host: string;
  /** 0: any free port. */
  readonly port: number;
  readonly redisUrl: string;
  /** Absolute directories that a source may lie under. */
  readonly sourceRoots: readonly string[];
  /** Where buckets of pushes are kept: a directory that every orchestrator and worker can read. */
  readonly spoolDirectory: string;
  /** Octal digits. */
  readonly fileMode: string;
  /** Hosts that hooks may be sent to; empty: any but link-local and cloud metadata addresses. */
  readonly hookHosts: readonly string[];
  /** null: the API is open to whoever reaches it, which is why `host` must then be a loopback address. */
  readonly token: string | null;
  readonly logLevel: LogLevel;
}

export const LOG_LEVELS = ["trace", "debug", "info", "warn", "error", "fatal", "silent"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

interface Setting {
  /** As the command line's parser takes it; null: environment only. */
  readonly flag: string | null;
  readonly env: string;
  readonly default: string | null;
  readonly description: string;
}

export const SETTINGS = {
  host: {
    flag: "--host <address>",
    env: "LAYERCAST_HOST",
    default: "127.0.0.1",
    description: "address to listen on; other than loopback only with a token",
  },
  port: {
    flag: "--port <number>",
    env: "LAYERCAST_PORT",
    default: "8600",
    description: "port to listen on; 0: any free",
  },
  sourceRoot: {
    flag: "--source-root <directory...>",
    env: "LAYERCAST_SOURCE_ROOTS",
    default: null,
    description: "directory that checkpoints may lie under; repeatable, in the variable separated by ':'",
  },
  spoolDir: {
    flag: "--spool-dir <directory>",
    env: "LAYERCAST_SPOOL_DIR",
    default: ".layercast/spool",
    description: "where buckets of pushes are kept until their reload has ended; every worker must be able to read it",
  },
  hookHost: {
    flag: "--hook-host <host...>",
    env: "LAYERCAST_HOOK_HOSTS",
    default: null,
    description:
      "host that hooks may be sent to: a name, *.DOMAIN, an address or a subnet; repeatable, in the variable separated by ','. " +
      "None given: any but link-local and cloud metadata addresses",
  },
  fileMode: FILE_MODE,
  tokenFile: {
    flag: "--token-file <file>",
    env: TOKEN_FILE_VARIABLE,
    default: null,
    description: "file that holds the bearer token callers must send",
  },
  logLevel: {
    flag: "--log-level <level>",
    env: "LAYERCAST_LOG_LEVEL",
    default: "info",
    description: `one of ${LOG_LEVELS.join(", ")}`,
  },
  token: { flag: null, env: TOKEN_VARIABLE, default: null, description: "the bearer token itself" },
  redisUrl: {
    flag: null,
    env: "REDIS_URL",
    default: null,
    description: "redis://, rediss:// or unix:/path/to.sock; required",
  },
} as const satisfies Record<string, Setting>;

/** What the command line gave, by setting. */
export interface OrchestratorFlags {
  host?: string;
  port?: string;
  sourceRoot?: string | string[];
  spoolDir?: string;
  fileMode?: string;
  hookHost?: string | string[];
  tokenFile?: string;
  logLevel?: string;
}

type Environment = Readonly<Record<string, string | undefined>>;

export function readConfig(flags: OrchestratorFlags, env: Environment): OrchestratorConfig {
  const given = (name: "host" | "port" | "spoolDir" | "fileMode" | "tokenFile" | "logLevel") =>
    flags[name] ?? fromEnv(env, SETTINGS[name].env) ?? SETTINGS[name].default;

  const host = given("host") ?? SETTINGS.host.default;
  const token = readToken(fromEnv(env, SETTINGS.token.env) ?? null, given("tokenFile"));
  refuseOpenBind(host, token);
  return Object.freeze({
    host,
    port: checkPort(given("port") ?? SETTINGS.port.default),
    redisUrl: readRedisUrl(env),
    sourceRoots: Object.freeze(
      readList(flags.sourceRoot, fromEnv(env, SETTINGS.sourceRoot.env), ":").map((root) => resolve(root)),
    ),
    fileMode: checkFileMode(given("fileMode") ?? FILE_MODE.default),
    spoolDirectory: resolve(given("spoolDir") ?? SETTINGS.spoolDir.default),
    hookHosts: Object.freeze(readList(flags.hookHost, fromEnv(env, SETTINGS.hookHost.env), ",")),
    token,
    logLevel: checkLogLevel(given("logLevel") ?? SETTINGS.logLevel.default),
  });
}

function checkFileMode(text: string): string {
  parseFileMode(text);
  return text;
}

/** Whether only this machine can reach the address. */
export function isLoopback(host: string): boolean {
  const address = host.replace(/^\[|\]$/g, "");
  if (address === "localhost") return true;
  const version = isIP(address);
  return version !== 0 && LOOPBACK.check(address, version === 6 ? "ipv6" : "ipv4");
}

const LOOPBACK = new BlockList();
LOOPBACK.addSubnet("127.0.0.0", 8, "ipv4");
LOOPBACK.addAddress("::1", "ipv6");

function fromEnv(env: Environment, name: string): string | undefined {
  const value = env[name]?.trim();
  return value === "" ? undefined : value;
}

function refuseOpenBind(host: string, token: string | null): void {
  if (token !== null || isLoopback(host)) return;
  throw new LayercastError(
    "invalid_request",
    `refusing to listen on ${host} without a token: whoever reaches it could replace the fleet's weights. ` +
      `Set ${SETTINGS.token.env} or --token-file, or listen on 127.0.0.1`,
    { host },
  );
}

function checkPort(text: string): number {
  const port = Number(text);
  if (/^\d{1,5}$/.test(text) && port <= 65_535) return port;
  throw new LayercastError("invalid_request", `the port is '${text}': give a whole number from 0 to 65535`, {
    port: text,
  });
}

/** Of orchestrators, workers and `up`. */
export function readRedisUrl(env: Environment): string {
  const url = fromEnv(env, SETTINGS.redisUrl.env);
  if (url === undefined) {
    throw new LayercastError(
      "invalid_request",
      `${SETTINGS.redisUrl.env} is not set: set it to redis://HOST:PORT or unix:/path/to.sock, ` +
        "or run `layercast up`, which starts a Redis of its own",
    );
  }
  // The value may hold a password, so no message repeats it.
  if (/^(redis|rediss):\/\/./.test(url) || /^unix:\/./.test(url)) return url;
  throw new LayercastError(
    "invalid_request",
    `${SETTINGS.redisUrl.env} must begin with redis://, rediss:// or unix:/ and name one server; Sentinels and Redis Cluster are not supported`,
  );
}

function readList(flag: string | string[] | undefined, variable: string | undefined, separator: string): string[] {
  const entries = flag === undefined ? (variable?.split(separator) ?? []) : [flag].flat();
  return entries.map((entry) => entry.trim()).filter((entry) => entry !== "");
}

/** For the worker, whose other settings are its command's options. */
export function readLogLevel(env: Environment): LogLevel {
  return checkLogLevel(fromEnv(env, SETTINGS.logLevel.env) ?? SETTINGS.logLevel.default);
}

function checkLogLevel(level: string): LogLevel {
  const known = LOG_LEVELS.find((name) => name === level);
  if (known !== undefined) return known;
  throw new LayercastError("invalid_request", `the log level is '${level}': give one of ${LOG_LEVELS.join(", ")}`);
}
