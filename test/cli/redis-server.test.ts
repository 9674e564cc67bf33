import { spawn } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { findRedisServer, type PrivateRedis, startPrivateRedis } from "../../orchestrator/cli/local/redis-server.js";
import { packageRoot } from "../../orchestrator/host/package-root.js";
import { connectRedis } from "../../orchestrator/host/redis.js";

let scratch: string;
const running: PrivateRedis[] = [];

beforeEach(() => {
  scratch = mkdtempSync(join(tmpdir(), "layercast redis-"));
});
afterEach(async () => {
  vi.unstubAllEnvs();
  await Promise.all(running.splice(0).map((redis) => redis.stop()));
  rmSync(scratch, { recursive: true, force: true });
});

async function start(directory: string): Promise<PrivateRedis> {
  const redis = await startPrivateRedis({ directory });
  running.push(redis);
  return redis;
}

async function ask(url: string, ...words: [string, ...string[]]): Promise<unknown> {
  const redis = connectRedis(url, "command");
  try {
    return await redis.call(...words);
  } finally {
    redis.disconnect();
  }
}

const isAlive = (pid: number) => existsSync(`/proc/${pid}`) && !/^State:\s+Z/m.test(readStatus(pid));
const readStatus = (pid: number) => readFileSync(`/proc/${pid}/status`, "utf8");

async function untilGone(pid: number): Promise<void> {
  while (isAlive(pid)) await sleep(5);
}

describe("a private Redis", () => {
  it("answers at its socket, keeps what was written over a restart, and is gone after stop", async () => {
    const directory = join(scratch, "redis");
    const first = await start(directory);
    expect(await ask(first.url, "SET", "epoch", "7")).toBe("OK");
    await first.stop();
    expect(isAlive(first.pid)).toBe(false);
    const second = await start(directory);
    expect(await ask(second.url, "GET", "epoch")).toBe("7");
  });

  it("listens on no port, evicts nothing, and lets nobody else into its directory", async () => {
    const directory = join(scratch, "redis");
    const { url } = await start(directory);
    const settings = async (name: string) => Object.values((await ask(url, "CONFIG", "GET", name)) as object).flat();
    expect(await settings("port")).toContain("0");
    expect(await settings("maxmemory-policy")).toContain("noeviction");
    expect(await settings("appendonly")).toContain("yes");
    expect(statSync(directory).mode & 0o777).toBe(0o700);
  });

  it("leads its own process group, which a Ctrl-C on the owner's terminal does not reach", async () => {
    const { pid } = await start(join(scratch, "redis"));
    const fields = readFileSync(`/proc/${pid}/stat`, "utf8")
      .replace(/^.*\) /, "")
      .split(" ");
    expect(fields.slice(2, 4)).toEqual([String(pid), String(pid)]); // process group, session
  });

  it("ends when its owner is killed with SIGKILL, its data on disk for the next one", async () => {
    const directory = join(scratch, "redis");
    const owner = spawnOwner(directory);
    const pid = await owner.redisPid;
    owner.process.kill("SIGKILL");
    // Started while the older one may still be ending: it waits for it.
    const next = await start(directory);
    await untilGone(pid);
    expect(await ask(next.url, "GET", "owner")).toBe("was here");
  });

  it("replaces a socket file that a crash left behind", async () => {
    const directory = join(scratch, "redis");
    mkdirSync(directory);
    writeFileSync(join(directory, "redis.sock"), "");
    const { url } = await start(directory);
    expect(await ask(url, "PING")).toBe("PONG");
  });

  it("is refused where another one runs on the same directory", async () => {
    const directory = join(scratch, "redis");
    await start(directory);
    await expect(startPrivateRedis({ directory, readyTimeoutMs: 200 })).rejects.toMatchObject({
      code: "redis_unavailable",
    });
  });

  it("puts its socket into a short private directory when its own path is too long for one", async () => {
    const runtime = join(scratch, "run");
    mkdirSync(runtime);
    vi.stubEnv("XDG_RUNTIME_DIR", runtime);
    const { url } = await start(join(scratch, "d".repeat(100)));
    const socket = url.slice("unix:".length);
    expect(Buffer.byteLength(socket)).toBeLessThan(108);
    expect(statSync(dirname(socket)).mode & 0o777).toBe(0o700);
    expect(await ask(url, "PING")).toBe("PONG");
  });

  it("refuses a short socket directory that others may enter", async () => {
    vi.stubEnv("XDG_RUNTIME_DIR", scratch);
    const directory = join(scratch, "d".repeat(100));
    const { url, stop } = await startPrivateRedis({ directory });
    await stop();
    chmodSync(dirname(url.slice("unix:".length)), 0o755);
    await expect(startPrivateRedis({ directory })).rejects.toThrow(/only this user may enter/);
  });

  it("that cannot start says so with the end of its log", async () => {
    const directory = join(scratch, "redis");
    mkdirSync(directory);
    writeFileSync(join(directory, "appendonlydir"), "a file where Redis wants a directory");
    await expect(startPrivateRedis({ directory })).rejects.toThrow(
      /ended before it answered[\s\S]*redis\.log[\s\S]*dir/i,
    );
  });
});

describe("finding a server", () => {
  function fakeServer(name: string, version: string): string {
    const directory = mkdtempSync(join(scratch, "bin-"));
    writeFileSync(join(directory, name), `#!/bin/sh\necho "${version}"\n`, { mode: 0o755 });
    return directory;
  }

  it("prefers Valkey wherever it is on PATH", () => {
    const redis = fakeServer("redis-server", "");
    const valkey = fakeServer("valkey-server", "");
    expect(findRedisServer(`${redis}:${valkey}`)).toBe(join(valkey, "valkey-server"));
    expect(findRedisServer(redis)).toBe(join(redis, "redis-server"));
  });

  it("names three ways out when there is none", () => {
    expect(() => findRedisServer(scratch)).toThrow(/apt-get install redis-server[\s\S]*docker run[\s\S]*REDIS_URL/);
  });

  it("refuses a version older than 6.2", async () => {
    const old = fakeServer("redis-server", "Redis server v=6.0.16 sha=00000000:0 malloc=jemalloc");
    vi.stubEnv("PATH", old);
    await expect(startPrivateRedis({ directory: join(scratch, "redis") })).rejects.toThrow(/v=6\.0\.16.*6\.2 or newer/);
  });
});

/** A process that starts a private Redis, writes to it, and then does nothing; it runs what `npm run build` made. */
function spawnOwner(directory: string) {
  const built = (name: string) => JSON.stringify(join(packageRoot(), "dist", "orchestrator", name));
  const program = `
    import { startPrivateRedis } from ${built("cli/local/redis-server.js")};
    import { connectRedis } from ${built("host/redis.js")};
    const server = await startPrivateRedis({ directory: ${JSON.stringify(directory)} });
    await connectRedis(server.url, "command").set("owner", "was here");
    console.log(server.pid);
    setInterval(() => {}, 1000);`;
  const owner = spawn(process.execPath, ["--input-type=module", "-e", program], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const redisPid = new Promise<number>((resolve, reject) => {
    owner.stdout.once("data", (bytes: Buffer) => resolve(Number(bytes.toString())));
    owner.once("exit", () => reject(new Error("the owner ended before it had a Redis")));
  });
  return { process: owner, redisPid };
}
