import dns from "node:dns";
import { promisify } from "node:util";
import { afterEach, describe, expect, it, vi } from "vitest";
import { openHookHosts } from "../../orchestrator/reloads/hook-hosts.js";

type Resolved = (error: null, found: { address: string; family: number }[]) => void;

afterEach(() => void vi.restoreAllMocks());

const judge = (allowed: string[], host: string) => openHookHosts(allowed).refusal(new URL(`http://${host}/pause`));

describe("without a list", () => {
  it.each(["127.0.0.1:8000", "localhost", "engine-1:8000", "10.0.0.7", "[::1]", "[fd00::1]", "gpu.example.com"])(
    "hooks may go to %s",
    (host) => expect(judge([], host)).toBeNull(),
  );

  it.each([
    "169.254.169.254",
    "169.254.0.1:80",
    "2852039166", // the same address in decimal
    "0xa9fea9fe",
    "[fe80::1]",
    "[febf::1]",
    "[::ffff:169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "[fd00:ec2::254]",
    "100.100.100.200",
    "metadata.google.internal",
    "metadata.google.internal.",
    "METADATA.GOOG",
  ])("hooks may not go to %s", (host) => expect(judge([], host)).toContain("link-local or cloud metadata"));
});

describe("with a list", () => {
  const allowed = ["engine-1", "*.engines.example", "10.1.0.0/16", "192.168.0.7", "fd00:1::/32"];

  it.each([
    "engine-1:8000",
    "ENGINE-1",
    "a.engines.example",
    "a.b.engines.example",
    "10.1.2.3",
    "192.168.0.7",
    "[fd00:1::5]",
  ])("hooks may go to %s", (host) => expect(judge(allowed, host)).toBeNull());

  it.each(["10.2.0.1", "192.168.0.8", "[fd00:2::1]", "127.0.0.1", "169.254.169.254"])(
    "hooks may not go to %s",
    (host) => expect(judge(allowed, host)).toContain("is not one of the hosts"),
  );

  it.each(["engine-2", "engines.example", "evil-engines.example", "metadata.google.internal"])(
    "of names alone hooks may not go to %s",
    (host) => expect(judge(["engine-1", "*.engines.example"], host)).toContain("is not one of the hosts"),
  );

  it("an address on it may be link-local", () => {
    expect(judge(["169.254.7.0/24"], "169.254.7.1")).toBeNull();
    expect(judge(["metadata.google.internal"], "metadata.google.internal")).toBeNull();
  });

  it("a name that is not on it goes by its addresses, and one on it does not lead to a link-local one", async () => {
    const found = (list: string[], host: string) =>
      new Promise((resolve) =>
        openHookHosts(list).lookup(host, { all: true }, (error, usable) => resolve(error?.message ?? usable)),
      );
    expect(await found(["127.0.0.0/8", "::1"], "localhost")).not.toBe("");
    expect(await found(["10.0.0.0/8"], "localhost")).toContain("is not one of the hosts");
    expect(await found(["engine-1"], "localhost")).toContain("is not one of the hosts");
  });

  it.each([
    ["engine-1.", "engine-1"],
    ["engine-1", "engine-1."],
    ["ENGINE-1.", "engine-1"],
    ["*.engines.example.", "a.engines.example"],
    ["*.engines.example", "a.engines.example."],
    ["10.0.0.7.", "10.0.0.7"],
    ["[fd00:1::5]", "[fd00:1::5]"],
    ["metadata.google.internal.", "metadata.google.internal"],
  ])("the entry %s means %s too: a full name may end with a dot", (entry, host) => {
    expect(judge([entry], host)).toBeNull();
    expect(judge([entry], "11.0.0.1")).toContain("is not one of the hosts");
  });

  it.each([
    [["localhost"], "localhost.", true],
    [["localhost."], "localhost", true],
    [["engine-1"], "localhost.", false],
  ] as const)("a lookup by the list %j takes %s as the judgement before it does", async (list, host, isTaken) => {
    vi.spyOn(dns, "lookup").mockImplementation(((_host: string, _options: object, done: Resolved) =>
      done(null, [{ address: "10.9.8.7", family: 4 }])) as unknown as typeof dns.lookup);
    const lookup = promisify(openHookHosts(list).lookup) as (host: string, options: object) => Promise<unknown>;
    const found = lookup(host, { all: true });
    if (isTaken) await expect(found).resolves.toBeDefined();
    else await expect(found).rejects.toThrow("is not one of the hosts");
  });

  it.each(["http://engine-1", "engine-1:8000", "10.0.0.0/33", "10.0.0.0/x", "*", "a b", ""])(
    "%j is not an entry",
    (entry) => expect(() => openHookHosts([entry])).toThrow(/must be a host name/),
  );
});
