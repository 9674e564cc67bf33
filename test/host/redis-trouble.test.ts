// What Redis says, in the wording of 6.2 and of 7, is told apart: not now, not with these settings, or not Redis's at all.

import { describe, expect, it } from "vitest";
import { explainTrouble, redisTrouble } from "../../orchestrator/host/redis-trouble.js";

const SHA = "8f3cbf5d1b9a6cbb8ba96f5f3ae5d4a1b2c3d4e5";
const REPLIES: Record<string, string> = {
  LOADING: "LOADING Redis is loading the dataset in memory",
  READONLY: "READONLY You can't write against a read only replica.",
  OOM: "OOM command not allowed when used memory > 'maxmemory'.",
  MISCONF: "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
  MASTERDOWN: "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
  CLUSTERDOWN: "CLUSTERDOWN The cluster is down",
  NOREPLICAS: "NOREPLICAS Not enough good replicas to write.",
  BUSY: "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
  EXECABORT: "EXECABORT Transaction discarded because of previous errors.",
  UNBLOCKED: "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
};
const REFUSALS: Record<string, string> = {
  NOAUTH: "NOAUTH Authentication required.",
  WRONGPASS: "WRONGPASS invalid username-password pair or user is disabled.",
  NOPERM: "NOPERM this user has no permissions to run the 'info' command",
  DENIED: "DENIED Redis is running in protected mode because protected mode is enabled",
  MOVED: "MOVED 3999 127.0.0.1:6381",
};

const inSeven = (said: string) => `${said.replace(/\.$/, "")} script: ${SHA}, on @user_script:19.`;
const inSix = (said: string) => `ERR Error running script (call to f_${SHA}): @user_script:19: -${said} `;
const codeOf = (message: string) => redisTrouble(new Error(message));

describe("an error reply", () => {
  for (const [code, said] of Object.entries(REPLIES)) {
    it.each([said, inSeven(said), inSix(said)])(`${code} is "not now": %s`, (message) => {
      expect(codeOf(message)).toMatchObject({ kind: "not_now", code });
    });
  }

  for (const [code, said] of Object.entries(REFUSALS)) {
    it.each([said, inSeven(said), inSix(said)])(`${code} is a matter of settings: %s`, (message) => {
      expect(codeOf(message)).toMatchObject({ kind: "settings", code });
    });
  }

  it.each([
    ["ERR unknown command 'EVALSHA', with args beginning with: 'secret' ", "UNKNOWN_COMMAND"],
    ["ERR unknown command `hello`, with args beginning with: `secret`, ", "UNKNOWN_COMMAND"],
    [inSix("x").replace("-x", "@user_script: 1: Unknown Redis command called from Lua script"), "UNKNOWN_COMMAND"],
    ["ERR ACL failure in script: User u has no permissions to run the 'info' command script: x, on y.", "NOPERM"],
    ["ERR The user executing the script can't run this command or subcommand script: x, on y.", "NOPERM"],
    ["ASK 3999 127.0.0.1:6381", "MOVED"],
    ["CROSSSLOT Keys in request don't hash to the same slot", "MOVED"],
    ["ERR Script attempted to access a non local key in a cluster node", "MOVED"],
    ["ERR DB index is out of range", "DATABASE"],
  ])("in other words is the same: %s", (message, code) => {
    expect(codeOf(message)).toMatchObject({ kind: "settings", code });
    expect(codeOf(message)?.reason).not.toMatch(/secret|6381/);
  });

  it("too many clients is not now", () => {
    expect(codeOf("ERR max number of clients reached")).toMatchObject({ kind: "not_now", code: "MAXCLIENTS" });
  });

  it.each([
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "ERR value is not an integer or out of range",
    "ERR Error running script (call to f_x): @user_script:3: user_script:3: attempt to index a nil value ",
    "the OOM killer was here",
    "Busy with something",
  ])("that is a mistake of ours is none of them: %s", (message) => {
    expect(codeOf(message)).toBeNull();
  });
});

describe("a connection", () => {
  const failed = (message: string, fields: object) => redisTrouble(Object.assign(new Error(message), fields));

  it.each([
    failed("connect ECONNREFUSED 127.0.0.1:1", { code: "ECONNREFUSED", syscall: "connect" }),
    failed("getaddrinfo ENOTFOUND redis", { code: "ENOTFOUND", syscall: "getaddrinfo" }),
    failed("connect ENOENT /run/redis.sock", { code: "ENOENT", syscall: "connect" }),
    failed("Socket timeout. Expecting data, but didn't receive any in 5000ms.", {}),
    failed("", { code: "ECONNREFUSED" }),
  ])("that cannot be made is waited for", (trouble) => {
    expect(trouble).toMatchObject({ kind: "not_now", code: "CONNECTION" });
    expect(trouble?.reason).not.toBe("");
  });

  it.each([
    ["self-signed certificate in certificate chain", "SELF_SIGNED_CERT_IN_CHAIN", "TLS"],
    ["unable to verify the first certificate", "UNABLE_TO_VERIFY_LEAF_SIGNATURE", "TLS"],
    ["write EPROTO: wrong version number", "EPROTO", "TLS"],
  ])("that TLS refuses is a matter of settings: %s", (message, code, kind) => {
    expect(failed(message, { code })).toMatchObject({ kind: "settings", code: kind });
  });

  it("to a socket of another user is one too", () => {
    const trouble = failed("connect EACCES /run/redis.sock", { code: "EACCES", syscall: "connect" });
    expect(trouble).toMatchObject({ kind: "settings", code: "ACCESS" });
  });
});

describe("the sentence", () => {
  const explained = (message: string) => explainTrouble(codeOf(message) ?? { kind: "not_now", code: "", reason: "" });

  it("of a refusal says what to change", () => {
    expect(explained("WRONGPASS invalid username-password pair or user is disabled.")).toBe(
      "Redis refuses what Layercast asks of it (WRONGPASS invalid username-password pair or user is disabled): " +
        "give REDIS_URL the right user and password.",
    );
  });

  it("of a not now has the reason and says that the same request can be sent again", () => {
    expect(explained("NOREPLICAS Not enough good replicas to write.")).toBe(
      "Redis does not serve now (NOREPLICAS Not enough good replicas to write), so nothing could be read or recorded: " +
        "try again once it does (GET /readyz tells).",
    );
  });
});
