// Which hosts hooks may be sent to. Whoever may set hooks makes the orchestrator send requests, so its own settings say where
// to: a list of hosts, or any host but those that only ever mean the orchestrator's own machine or cloud account. Names are
// looked up here, so that the address that was judged is the address that is connected to.

import dns from "node:dns";
import { BlockList, isIP, type LookupFunction } from "node:net";
import { LayercastError } from "../contract/errors.js";
import type { Hooks } from "../fleet/state.js";

export interface HookHosts {
  /** Why no request may go to the URL, as far as it can be said without a lookup; null: it may. */
  refusal(url: URL): string | null;
  /** For a connection: resolves a name to those of its addresses that requests may go to. */
  lookup: LookupFunction;
}

/** Link-local addresses, and the addresses of clouds' metadata services outside of them. */
const NEVER_BY_DEFAULT = [
  "169.254.0.0/16",
  "fe80::/10",
  "64:ff9b::a9fe:0/112", // 169.254.0.0/16 behind NAT64
  "::a9fe:0/112", // the same, compatible with IPv4
  "2002:a9fe::/32", // and by 6to4
  "fd00:ec2::254", // AWS
  "fd20:ce::254", // Google Cloud
  "100.100.100.200", // Alibaba Cloud
];
const METADATA_NAMES = new Set(["metadata", "metadata.google.internal", "metadata.goog", "instance-data"]);

/** `allowed`: names, `*.domain`, addresses or subnets in CIDR notation; empty: any host but the ones above. */
export function openHookHosts(allowed: readonly string[]): HookHosts {
  const names = new Set<string>();
  const domains: string[] = [];
  const addresses: string[] = [];
  for (const entry of allowed.map(plainHost)) {
    if (isIP(entry.split("/", 1)[0] ?? "") !== 0) addresses.push(entry);
    else if (entry.startsWith("*.") && NAME.test(entry.slice(2))) domains.push(entry.slice(1));
    else if (NAME.test(entry)) names.add(entry);
    else throw notAHost(entry);
  }
  const [listed, never] = [blockListOf(addresses), blockListOf(NEVER_BY_DEFAULT)];

  const isNamed = (host: string) => names.has(host) || domains.some((domain) => host.endsWith(domain));
  const mayConnect = (address: string, named: boolean) => {
    const family = isIP(address) === 6 ? "ipv6" : "ipv4";
    return listed.check(address, family) || (named && !never.check(address, family));
  };
  const isOpen = allowed.length === 0;

  return {
    refusal(url) {
      const host = plainHost(url.hostname);
      if (isIP(host) !== 0) return mayConnect(host, isOpen) ? null : refused(host, isOpen);
      if (isNamed(host) || (isOpen && !METADATA_NAMES.has(host))) return null;
      // A name that is not on the list may still have an address that is.
      return addresses.length > 0 ? null : refused(host, isOpen);
    },
    lookup(asked, options, done) {
      const host = plainHost(asked);
      dns.lookup(asked, { ...options, all: true }, (error, found) => {
        if (error !== null) return done(error, "", 0);
        const named = isNamed(host) || (isOpen && !METADATA_NAMES.has(host));
        const usable = found.filter(({ address }) => mayConnect(address, named));
        const [first] = usable;
        if (first === undefined) return done(new Error(refused(found[0]?.address ?? host, isOpen)), "", 0);
        if (options.all) done(null, usable);
        else done(null, first.address, first.family);
      });
    },
  };
}

/** Said when hooks are set; what a lookup tells, when they are called. */
export function requireHookHosts(hosts: HookHosts, { pause, resume }: Hooks): void {
  for (const url of [...pause.urls, ...resume.urls]) {
    const refusal = hosts.refusal(new URL(url));
    if (refusal === null) continue;
    throw new LayercastError("invalid_request", `the hook ${url} is not allowed: ${refusal}`, { url });
  }
}

/** A DNS name, or one of a container network. */
const NAME = /^(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*$/;

/** The one form in which hosts are compared: small letters, without the brackets of an IPv6 address and the dot that a full name may end with. */
function plainHost(host: string): string {
  return host
    .toLowerCase()
    .replace(/^\[|\]$/g, "")
    .replace(/\.$/, "");
}

function blockListOf(entries: readonly string[]): BlockList {
  const list = new BlockList();
  for (const entry of entries) {
    const [address = "", prefix] = entry.split("/");
    const family = isIP(address) === 6 ? "ipv6" : "ipv4";
    try {
      if (prefix === undefined) list.addAddress(address, family);
      else list.addSubnet(address, /^\d{1,3}$/.test(prefix) ? Number(prefix) : Number.NaN, family);
    } catch {
      throw notAHost(entry);
    }
  }
  return list;
}

function refused(host: string, isOpen: boolean): string {
  return isOpen
    ? `${host} is a link-local or cloud metadata address, and hooks are sent there only when --hook-host names it`
    : `${host} is not one of the hosts that hooks may be sent to (--hook-host)`;
}

function notAHost(entry: string): LayercastError {
  return new LayercastError(
    "invalid_request",
    `--hook-host is ${JSON.stringify(entry)}, but must be a host name, *.DOMAIN, an address, or a subnet such as 10.0.0.0/8`,
    { hook_host: entry },
  );
}
