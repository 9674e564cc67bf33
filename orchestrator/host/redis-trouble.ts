// Tells Redis's "not now", and its "not with these settings", from all other errors, whichever client threw them, in the words
// of every version from 6.2 on. Before version 7 an error inside of a script is wrapped: "ERR Error running script (...): -OOM ...".

export interface RedisTrouble {
  /** `settings`: waiting does not help; somebody must change REDIS_URL, or that Redis. */
  kind: "not_now" | "settings";
  /** Of the kind of trouble: one that lasts has the same code from one error to the next. */
  code: string;
  /** What Redis or the network said, on one line. */
  reason: string;
}

const NOT_NOW = [
  ...["LOADING", "READONLY", "OOM", "MISCONF", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "BUSY", "TRYAGAIN"],
  ...["UNBLOCKED", "NOSCRIPT", "EXECABORT"],
];

const SETTINGS: Record<string, string> = {
  NOAUTH: "give REDIS_URL the user and the password",
  WRONGPASS: "give REDIS_URL the right user and password",
  NOPERM: "give the user of REDIS_URL the rights that docs/operations.md lists",
  DENIED: "let that Redis take connections from this host (protected mode, bind)",
  MOVED: "REDIS_URL names a node of a Redis Cluster, which Layercast does not support: name a Redis that stands alone",
  UNKNOWN_COMMAND: "REDIS_URL names a server that lacks what Layercast needs: name a Redis or Valkey, 6.2 or newer",
  DATABASE: "name a database that this Redis has in REDIS_URL",
  SENTINEL: "name the Redis itself in REDIS_URL, or an address that always leads to the one that takes writes",
  TLS: "set NODE_EXTRA_CA_CERTS to the certificate of the authority that signed the server's, or correct REDIS_URL",
  ACCESS: "let this process's user open the socket that REDIS_URL names",
};

/** Messages without a code of their own, and the same thing in other words. */
const IN_WORDS: readonly [RegExp, string][] = [
  [/^(?:ASK|CROSSSLOT) |non local key in a cluster node|not allowed in cluster mode/, "MOVED"],
  [/unknown (?:redis )?command/i, "UNKNOWN_COMMAND"],
  [/The user executing the script can't|ACL failure in script/, "NOPERM"],
  [/^ERR invalid password/, "WRONGPASS"],
  [/DB index is out of range/, "DATABASE"],
  [/max number of clients reached/, "MAXCLIENTS"],
];

const TLS_CODE = /^(?:ERR_TLS_|ERR_SSL_|CERT_|UNABLE_TO_|SELF_SIGNED_|DEPTH_ZERO_|HOSTNAME_MISMATCH|EPROTO)/;

const CONNECTION_CODES = new Set([
  ...["ECONNREFUSED", "ECONNRESET", "EPIPE", "ETIMEDOUT", "EHOSTUNREACH", "EHOSTDOWN", "ENETUNREACH", "ENETDOWN"],
  ...["ENOTFOUND", "EAI_AGAIN"],
]);

/** Clients give no code for these. */
const CONNECTION_MESSAGES =
  /^(?:Connection is closed|Stream isn't writeable|Command timed out|Command aborted due to connection close|Socket timeout|Reached the max retries per request limit)/;

/** Null: the error is not Redis's. */
export function redisTrouble(error: unknown): RedisTrouble | null {
  if (!(error instanceof Error)) return null;
  const { code = "", syscall } = error as NodeJS.ErrnoException;
  const isQueued = error.name === "MaxRetriesPerRequestError"; // it waited for a connection, and would say so in a library's words
  const reason = isQueued ? "no connection" : shown(error.message === "" ? code : error.message);
  if (TLS_CODE.test(code)) return { kind: "settings", code: "TLS", reason };
  // A missing unix socket is ENOENT, which only `connect` makes a connection error.
  if (syscall === "connect" && (code === "EACCES" || code === "EPERM")) {
    return { kind: "settings", code: "ACCESS", reason };
  }
  const isLost = CONNECTION_CODES.has(code) || syscall === "connect" || CONNECTION_MESSAGES.test(error.message);
  if (isLost || isQueued) return { kind: "not_now", code: "CONNECTION", reason };
  const said = codeSaid(error.message);
  return said === null ? null : { kind: said in SETTINGS ? "settings" : "not_now", code: said, reason };
}

/** The code that an error reply begins with, or that the reply to a script carries inside. */
function codeSaid(message: string): string | null {
  const inside = /^ERR Error (?:running|compiling) script.*?[:\s]-([A-Z]+) /.exec(message)?.[1];
  const said = inside ?? /^-?([A-Z]+) /.exec(message)?.[1];
  if (said !== undefined && (NOT_NOW.includes(said) || said in SETTINGS)) return said;
  return IN_WORDS.find(([pattern]) => pattern.test(message))?.[1] ?? null;
}

const SHOWN_CHARACTERS = 200;

/** Without the arguments that Redis repeats, which are data, and without the node that it names. */
function shown(message: string): string {
  const line = message
    .replace(/\s+/g, " ")
    .replace(/,? with args beginning with:.*$/, "")
    .replace(/^((?:MOVED|ASK) \d+) .*/, "$1");
  return line.length > SHOWN_CHARACTERS ? `${line.slice(0, SHOWN_CHARACTERS)}...` : line.trim();
}

/** A sentence for whoever asked for something: what is the matter, and what to do. No addresses: those are for the log. */
export function explainTrouble({ kind, code, reason }: RedisTrouble): string {
  const said = reason.replace(/\.+$/, "");
  if (kind === "settings") return `Redis refuses what Layercast asks of it (${said}): ${SETTINGS[code]}.`;
  const what = code === "CONNECTION" ? "Redis does not answer" : `Redis does not serve now (${said})`;
  return `${what}, so nothing could be read or recorded: try again once it does (GET /readyz tells).`;
}
