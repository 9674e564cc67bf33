import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { Writable } from "node:stream";
import { describe, expect, it } from "vitest";
import { isLoopback, readConfig } from "../../orchestrator/host/config.js";
import { createLog } from "../../orchestrator/host/log.js";

const REDIS = { REDIS_URL: "redis://127.0.0.1:6379" };
const fileWith = (text: string) => {
  const file = join(mkdtempSync(join(tmpdir(), "layercast-config-")), "token");
  writeFileSync(file, text);
  return file;
};

describe("the configuration", () => {
  it("has defaults for all but Redis, and is frozen", () => {
    const config = readConfig({}, REDIS);
    expect(config).toEqual({
      host: "127.0.0.1",
      port: 8600,
      redisUrl: REDIS.REDIS_URL,
      sourceRoots: [],
      spoolDirectory: resolve(".layercast/spool"),
      fileMode: "640",
      hookHosts: [],
      token: null,
      logLevel: "info",
    });
    expect(Object.isFrozen(config) && Object.isFrozen(config.sourceRoots)).toBe(true);
  });

  it("reads every variable, and a flag wins over its variable", () => {
    const env = {
      ...REDIS,
      LAYERCAST_HOST: "::1",
      LAYERCAST_PORT: "1",
      LAYERCAST_SOURCE_ROOTS: "/a:/b/../c:",
      LAYERCAST_SPOOL_DIR: "/s/../spool",
      LAYERCAST_HOOK_HOSTS: "engine-1, 10.0.0.0/8",
      LAYERCAST_TOKEN: "t0k",
      LAYERCAST_LOG_LEVEL: "warn",
    };
    const fromEnv = { host: "::1", port: 1, sourceRoots: ["/a", "/c"], token: "t0k", logLevel: "warn" };
    const hookHosts = ["engine-1", "10.0.0.0/8"];
    expect(readConfig({}, env)).toMatchObject({ ...fromEnv, spoolDirectory: "/spool", hookHosts });
    const flags = { host: "localhost", port: "0", sourceRoot: ["/d", "/e"], spoolDir: "kept", logLevel: "debug" };
    expect(readConfig({ ...flags, hookHost: ["engine-2"] }, env).hookHosts).toEqual(["engine-2"]);
    const fromFlags = { host: "localhost", port: 0, sourceRoots: ["/d", "/e"], spoolDirectory: resolve("kept") };
    expect(readConfig(flags, env)).toMatchObject({ ...fromFlags, logLevel: "debug" });
  });

  it("takes an empty variable as not set", () => {
    const env = {
      ...REDIS,
      LAYERCAST_TOKEN: "",
      LAYERCAST_PORT: " ",
      LAYERCAST_SOURCE_ROOTS: "",
      LAYERCAST_SPOOL_DIR: "",
    };
    const unset = { token: null, port: 8600, sourceRoots: [], spoolDirectory: resolve(".layercast/spool") };
    expect(readConfig({}, env)).toMatchObject(unset);
  });

  it("reads the token from a file, without its line end", () => {
    expect(readConfig({ tokenFile: fileWith("s3cret\n") }, REDIS).token).toBe("s3cret");
  });

  it.each(["0.0.0.0", "::", "10.0.0.7", "fleet.example", ""])("refuses to listen on '%s' without a token", (host) => {
    const listen = host === "" ? { host: "0.0.0.0" } : { host };
    expect(() => readConfig(listen, REDIS)).toThrow(/refusing to listen on .* without a token/);
    expect(readConfig(listen, { ...REDIS, LAYERCAST_TOKEN: "t" }).host).toBe(listen.host);
  });

  it.each([
    ["127.0.0.1", true],
    ["127.8.9.1", true],
    ["localhost", true],
    ["::1", true],
    ["[::1]", true],
    ["128.0.0.1", false],
    ["localhost.example", false],
    ["127.0.0.1.example", false],
    ["", false],
  ])("knows whether '%s' is loopback", (host, expected) => {
    expect(isLoopback(host)).toBe(expected);
  });

  it.each([
    [{}, {}, /REDIS_URL is not set/],
    [{}, { REDIS_URL: "localhost:6379" }, /REDIS_URL must begin with/],
    [{ port: "65536" }, REDIS, /port is '65536'/],
    [{ port: "http" }, REDIS, /port is 'http'/],
    [{ logLevel: "loud" }, REDIS, /log level is 'loud'/],
    [{ tokenFile: "/nowhere/token" }, REDIS, /The token file \/nowhere\/token cannot be read \(ENOENT/],
    [{ tokenFile: fileWith("") }, REDIS, /The token in .* must be one or more/],
    [{}, { ...REDIS, LAYERCAST_TOKEN: "two words" }, /The token in .* must be one or more/],
    [{ tokenFile: "/x" }, { ...REDIS, LAYERCAST_TOKEN: "t" }, /Both LAYERCAST_TOKEN and the token file \/x/],
  ])("refuses %j %j with a sentence", (flags, env, sentence) => {
    expect(() => readConfig(flags, env)).toThrow(sentence);
  });

  it("repeats no secret in its refusals", () => {
    expect(() => readConfig({}, { REDIS_URL: "http://:hunter22@host" })).toThrow(/^(?!.*hunter22)/);
    expect(() => readConfig({}, { ...REDIS, LAYERCAST_TOKEN: "my secret" })).toThrow(/^(?!.*my secret)/);
  });
});

describe("the log", () => {
  const logged = (write: (log: ReturnType<typeof createLog>) => void) => {
    let text = "";
    const lines = new Writable({
      write(chunk, _encoding, done) {
        text += String(chunk);
        done();
      },
    });
    write(
      createLog(
        { name: "orchestrator", logLevel: "info", redisUrl: "redis://me:p%40ssw0rd@host:1", token: "s3cret-token" },
        lines,
      ),
    );
    return text;
  };

  it("is one JSON object a line, with the child's fields", () => {
    const line = JSON.parse(logged((log) => log.child({ reload: "rl-1", rank: "0/1", layer: "lm_head" }).info("read")));
    expect(line).toMatchObject({ level: 30, reload: "rl-1", rank: "0/1", layer: "lm_head", msg: "read" });
  });

  it.each<[string, (log: ReturnType<typeof createLog>) => void]>([
    ["a header", (log) => log.info({ req: { headers: { authorization: "Bearer s3cret-token" } } })],
    ["a field", (log) => log.info({ token: "s3cret-token", password: "p@ssw0rd" })],
    ["a message", (log) => log.info("got Bearer s3cret-token for redis://me:p%40ssw0rd@host:1")],
    ["an error", (log) => log.error(new Error("cannot reach redis://me:p%40ssw0rd@host:1"))],
    [
      "a command's arguments",
      (log) => log.error(Object.assign(new Error("WRONGPASS"), { command: { name: "auth", args: ["p@ssw0rd"] } })),
    ],
    ["another server's URL", (log) => log.info("rediss://u:other-p%40ssw0rd@host2")],
  ])("hides secrets in %s", (_where, write) => {
    const text = logged(write);
    expect(JSON.parse(text)).toBeTypeOf("object");
    expect(text).not.toMatch(/s3cret-token|p%40ssw0rd|p@ssw0rd/);
  });
});
