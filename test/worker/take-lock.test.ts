// Who may take a rank's lock from whom (P9), with the time, the processes and the file of a test.

import { describe, expect, it } from "vitest";
import { formatIdentity, ownIdentity, type ProcessIdentity, parseIdentity } from "../../worker/process-identity.js";
import { DEADLINE_MS, type LockHost, SILENT_MS, takeLock } from "../../worker/take-lock.js";

const OWN: ProcessIdentity = { pid: 7, host: "a", boot: "b-1", pidNamespace: "4026531836", startedAt: "500" };
const HOLDER: ProcessIdentity = { ...OWN, pid: 2, startedAt: "100" };

interface Held {
  text: string;
  /** Whether it touches its file at this time. */
  shows(now: number): boolean;
  /** Whether the signal ends it. */
  endsBy?: "SIGTERM" | "SIGKILL" | "itself";
  endsAt?: number;
  isWorker?: boolean;
}

/** A file that somebody holds; `signals` is what was sent to whom and when. */
function lockedBy(held: Held, own: ProcessIdentity | null = OWN) {
  let now = 0;
  let isHeld = true;
  let sign = 1;
  const signals: string[] = [];
  const host: LockHost = {
    own,
    now: () => now,
    delay: async (ms) => {
      now += ms;
      if (held.shows(now)) sign = now;
      if (held.endsAt !== undefined && now >= held.endsAt) isHeld = false;
    },
    lastSign: () => sign,
    isWorker: () => held.isWorker ?? true,
    kill: (pid, signal) => {
      const last = `${signal} ${pid}`;
      if (signals.at(-1) !== last) signals.push(last);
      if (signal === held.endsBy || held.endsBy === "SIGTERM") isHeld = false;
    },
  };
  const core = { acquireLock: () => (isHeld ? held.text : null) };
  const take = (takeOver: boolean) => takeLock({ core, path: "/r/lock", takeOver, onEnding: () => {} }, host);
  return { take, signals, now: () => now };
}

const EACH_SECOND = (now: number) => now % 1_000 === 0;
const NEVER = () => false;

describe("a worker that finds its rank's lock held", () => {
  it("leaves a holder alone that shows signs of life, and says at once how to replace it", async () => {
    const lock = lockedBy({ text: formatIdentity(HOLDER), shows: EACH_SECOND });
    await expect(lock.take(false)).rejects.toMatchObject({
      code: "invalid_request",
      message: expect.stringMatching(/^Worker process 2 on a holds .*\/r\/lock.* is alive\. .*--take-over\.$/),
    });
    expect(lock.signals).toEqual([]);
    expect(lock.now()).toBeLessThan(SILENT_MS);
  });

  it("ends a living one when told to take over, by SIGKILL where it does not heed SIGTERM", async () => {
    const lock = lockedBy({ text: formatIdentity(HOLDER), shows: EACH_SECOND, endsBy: "SIGKILL" });
    await lock.take(true);
    expect(lock.signals).toEqual(["SIGTERM 2", "SIGKILL 2"]);
    expect(lock.now()).toBeLessThan(1_000);
  });

  it("ends one that has shown no sign of life for as long as a lease", async () => {
    const lock = lockedBy({ text: formatIdentity(HOLDER), shows: NEVER, endsBy: "SIGTERM" });
    await lock.take(false);
    expect(lock.signals).toEqual(["SIGTERM 2"]);
    expect(lock.now()).toBeGreaterThanOrEqual(SILENT_MS);
  });

  it("waits for one that ends by itself, without a signal", async () => {
    const lock = lockedBy({ text: formatIdentity(HOLDER), shows: NEVER, endsAt: 3_000 });
    await lock.take(false);
    expect(lock.signals).toEqual([]);
  });

  const elsewhere: [string, ProcessIdentity][] = [
    ["another PID namespace", { ...HOLDER, pidNamespace: "4026532999" }],
    ["another host of the same name", { ...HOLDER, boot: "b-2" }],
    ["another container, with this process's own number", { ...OWN, pidNamespace: "4026532999" }],
  ];
  it.each(elsewhere)(
    "signals nobody when it is held from %s, waits to the deadline and names the holder",
    async (_, holder) => {
      for (const takeOver of [false, true]) {
        const lock = lockedBy({ text: formatIdentity(holder), shows: NEVER });
        await expect(lock.take(takeOver)).rejects.toMatchObject({
          code: "io_error",
          message: expect.stringContaining(
            `process ${holder.pid} of host a, in another PID namespace or on another host`,
          ),
        });
        expect(lock.signals).toEqual([]);
        expect(lock.now()).toBeLessThan(DEADLINE_MS + 1_000);
      }
    },
  );

  const unknown: [string, Held, ProcessIdentity | null][] = [
    ["that is this process itself", { text: formatIdentity(OWN), shows: NEVER }, OWN],
    [
      "that is no worker, or started at another time",
      { text: formatIdentity(HOLDER), shows: NEVER, isWorker: false },
      OWN,
    ],
    ["that the file does not name", { text: "", shows: NEVER }, OWN],
    ["that an earlier version named by its number alone", { text: "2\n", shows: NEVER }, OWN],
    ["where the kernel does not tell who this process is", { text: formatIdentity(HOLDER), shows: NEVER }, null],
  ];
  it.each(unknown)("signals nobody for a holder %s", async (_, held, own) => {
    const lock = lockedBy(held, own);
    await expect(lock.take(true)).rejects.toMatchObject({ code: "io_error" });
    expect(lock.signals).toEqual([]);
  });
});

it("a process is named by a text that gives it back, and half a text names none", () => {
  const own = ownIdentity();
  expect(own?.pid).toBe(process.pid);
  const text = formatIdentity(own ?? OWN);
  expect(parseIdentity(text)).toEqual(own);
  expect(text.split("\n")[0]).toBe(String(process.pid));
  for (let length = 0; length < text.length; length++) expect(parseIdentity(text.slice(0, length))).toBeNull();
});
