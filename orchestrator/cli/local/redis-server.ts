// A private Redis for one owner: a directory becomes a running server behind a unix socket in it, with an append-only
// file, that no network reaches and that ends with its owner. Never used when REDIS_URL is given.

import { type ChildProcess, execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { accessSync, constants } from "node:fs";
import { lstat, mkdir, readFile, realpath, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { LayercastError } from "../../contract/errors.js";
import { endProcess, exitWords, hasExited, spawnOwned } from "./owned-process.js";

export interface PrivateRedisOptions {
  /** Made with mode 0700 when it is not there; holds the config, the log, the append-only file and, if short, the socket. */
  directory: string;
  /** Off only where nothing needs to outlive the server. */
  appendOnly?: boolean;
  /** Until the first PONG, waiting for an older server on the same directory and reading its file included. */
  readyTimeoutMs?: number;
}

/** A server that can be started, and started again when it died. */
export interface PreparedRedis {
  /** `unix:/path/to.sock` */
  url: string;
  logPath: string;
  spawn(): ChildProcess;
  /** Resolves at the first PONG; throws with the end of the log when the child ends or the time is over. */
  waitUntilReady(child: ChildProcess): Promise<void>;
}

export interface PrivateRedis {
  url: string;
  pid: number;
  logPath: string;
  stop(): Promise<void>;
}

const SERVER_NAMES = ["valkey-server", "redis-server"];
const OLDEST = { major: 6, minor: 2 };
/** sockaddr_un holds 108 bytes, the closing zero included. */
const MAX_SOCKET_PATH_BYTES = 107;
const STOP_GRACE_MS = 5_000;
const POLL_MS = 10;
const PING_TIMEOUT_MS = 1_000;
const LOCKED_EXIT_CODE = 75;

export async function startPrivateRedis(options: PrivateRedisOptions): Promise<PrivateRedis> {
  const redis = await preparePrivateRedis(options);
  const child = redis.spawn();
  try {
    await redis.waitUntilReady(child);
  } catch (error) {
    await endProcess(child, STOP_GRACE_MS);
    throw error;
  }
  return {
    url: redis.url,
    pid: child.pid ?? 0,
    logPath: redis.logPath,
    stop: () => endProcess(child, STOP_GRACE_MS),
  };
}

export async function preparePrivateRedis(options: PrivateRedisOptions): Promise<PreparedRedis> {
  const server = findRedisServer(process.env.PATH ?? "");
  await checkVersion(server);
  await mkdir(options.directory, { recursive: true, mode: 0o700 });
  const directory = await realpath(options.directory);
  const socketPath = await chooseSocketPath(directory);
  const logPath = join(directory, "redis.log");
  const configPath = join(directory, "redis.conf");
  await writeFile(configPath, redisConfig({ directory, socketPath, logPath, appendOnly: options.appendOnly ?? true }), {
    mode: 0o600,
  });
  const timeoutMs = options.readyTimeoutMs ?? 30_000;
  // The server holds the lock for life (--no-fork: flock becomes the server), so that one started right after its owner
  // was killed waits until the older one has written its file and is gone.
  const lock = ["--no-fork", "--timeout", String(timeoutMs / 1000), "--conflict-exit-code", String(LOCKED_EXIT_CODE)];
  return {
    url: `unix:${socketPath}`,
    logPath,
    spawn: () => spawnOwned("flock", [...lock, join(directory, "lock"), server, configPath], { stdio: "ignore" }),
    waitUntilReady: (child) => waitForPong(child, { socketPath, logPath, timeoutMs }),
  };
}

/** The first of the known servers on `path` (a PATH value). */
export function findRedisServer(path: string): string {
  for (const name of SERVER_NAMES) {
    for (const directory of path.split(delimiter)) {
      const file = join(directory, name);
      if (directory !== "" && isExecutable(file)) return file;
    }
  }
  throw new LayercastError(
    "redis_unavailable",
    `No Redis: REDIS_URL is not set and neither ${SERVER_NAMES.join(" nor ")} is on PATH. Do one of three things: ` +
      "install one (Debian, Ubuntu: apt-get install redis-server), run one in a container " +
      "(docker run -d -p 6379:6379 redis:7) and set REDIS_URL=redis://127.0.0.1:6379, or set REDIS_URL to one that you have",
    { names: SERVER_NAMES },
  );
}

function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

async function checkVersion(server: string): Promise<void> {
  const { stdout } = await promisify(execFile)(server, ["--version"]);
  const [, major, minor] = /v=(\d+)\.(\d+)/.exec(stdout) ?? [];
  const known = major !== undefined && minor !== undefined;
  const recent =
    known && (Number(major) > OLDEST.major || (Number(major) === OLDEST.major && Number(minor) >= OLDEST.minor));
  if (recent) return;
  throw new LayercastError(
    "redis_unavailable",
    `${server} says "${stdout.trim()}", and Layercast needs version ${OLDEST.major}.${OLDEST.minor} or newer: ` +
      "install a newer one, or set REDIS_URL",
    { server },
  );
}

async function chooseSocketPath(directory: string): Promise<string> {
  const inside = join(directory, "redis.sock");
  if (Buffer.byteLength(inside) <= MAX_SOCKET_PATH_BYTES) return inside;
  const digest = createHash("sha256").update(directory).digest("hex").slice(0, 12);
  const short = join(process.env.XDG_RUNTIME_DIR ?? tmpdir(), `layercast-${process.getuid?.() ?? 0}-${digest}`);
  await mkdir(short, { recursive: true, mode: 0o700 });
  const found = await lstat(short);
  if (!found.isDirectory() || found.uid !== process.getuid?.() || (found.mode & 0o077) !== 0) {
    throw new LayercastError(
      "redis_unavailable",
      `${short}, where the socket of the Redis in ${directory} would go, is not a directory that only this user may ` +
        "enter: remove it, or give a shorter run directory",
      { path: short },
    );
  }
  return join(short, "redis.sock");
}

interface ConfigValues {
  directory: string;
  socketPath: string;
  logPath: string;
  appendOnly: boolean;
}

export function redisConfig(values: ConfigValues): string {
  const lines = [
    "port 0",
    `unixsocket ${JSON.stringify(values.socketPath)}`,
    "unixsocketperm 700",
    "daemonize no",
    `dir ${JSON.stringify(values.directory)}`,
    `logfile ${JSON.stringify(values.logPath)}`,
    `appendonly ${values.appendOnly ? "yes" : "no"}`,
    // A decision is on disk before anyone hears of it (P3). Writes that come together share one fsync.
    "appendfsync always",
    'save ""',
    "maxmemory-policy noeviction",
  ];
  return `${lines.join("\n")}\n`;
}

interface PongWait {
  socketPath: string;
  logPath: string;
  timeoutMs: number;
}

async function waitForPong(child: ChildProcess, wait: PongWait): Promise<void> {
  const deadline = performance.now() + wait.timeoutMs;
  while (performance.now() < deadline) {
    if (child.exitCode === LOCKED_EXIT_CODE) {
      throw await startFailure("another server still runs on the same directory", wait.logPath);
    }
    if (hasExited(child)) {
      throw await startFailure(`the server ended before it answered (${exitWords(child)})`, wait.logPath);
    }
    if (await answersPing(wait.socketPath, child.pid ?? 0)) return;
    await sleep(POLL_MS);
  }
  throw await startFailure(`no PONG from ${wait.socketPath} within ${wait.timeoutMs} ms`, wait.logPath);
}

/**
 * Speaks Redis's inline protocol itself: a client library would queue and reconnect, and this asks "now?". The process id
 * tells our server from an older one that is about to end.
 */
function answersPing(socketPath: string, pid: number): Promise<boolean> {
  return new Promise((resolve) => {
    let text = "";
    const socket = connect(socketPath);
    const answer = (pong: boolean) => {
      socket.destroy();
      resolve(pong);
    };
    socket.setTimeout(PING_TIMEOUT_MS, () => answer(false));
    socket.once("error", () => answer(false));
    socket.once("close", () => resolve(false));
    socket.once("connect", () => socket.write("INFO server\r\nPING\r\n"));
    socket.on("data", (bytes) => {
      text += bytes.toString();
      if (text.includes("\r\n+PONG")) answer(text.includes(`process_id:${pid}\r`));
      // While it reads its append-only file.
      else if (text.includes("\r\n-LOADING")) answer(false);
    });
  });
}

async function startFailure(what: string, logPath: string): Promise<LayercastError> {
  const log = await readFile(logPath, "utf8").catch(() => "");
  const lastLines = log.trimEnd().split("\n").slice(-20).join("\n");
  return new LayercastError(
    "redis_unavailable",
    `The private Redis did not start: ${what}. The end of ${logPath}:\n${lastLines === "" ? "(empty)" : lastLines}`,
    { logPath },
  );
}
