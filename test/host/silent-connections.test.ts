// A connection that goes silent without being closed is given up and made again, whatever it is used for.

import { setTimeout as delay } from "node:timers/promises";
import type { Redis } from "ioredis";
import { describe, expect, it } from "vitest";
import { connectRedis, type RedisRole } from "../../orchestrator/host/redis.js";
import { usePrivateRedis } from "../private-redis.js";
import { type SilentProxy, startSilentProxy } from "./silent-proxy.js";

let direct: Redis;
usePrivateRedis("silent", (opened) => {
  direct = opened;
});

/** As the attack on it allows; a connection is given up after five seconds. */
const BACK_WITHIN_MS = 12_000;

interface Through {
  proxy: SilentProxy;
  connect(role: RedisRole): Redis;
  duplicate(redis: Redis): Redis;
  close(): void;
}

async function connectThroughProxy(): Promise<Through> {
  const proxy = await startSilentProxy(String(direct.options.path));
  const connections: Redis[] = [];
  const keep = (redis: Redis) => {
    connections.push(redis.on("error", () => undefined));
    return redis;
  };
  return {
    proxy,
    connect: (role) => keep(connectRedis(`redis://127.0.0.1:${proxy.port}`, role)),
    duplicate: (redis) => keep(redis.duplicate()),
    close() {
      for (const connection of connections) connection.disconnect();
      proxy.close();
    },
  };
}

async function until(what: string, attempt: () => Promise<unknown>): Promise<void> {
  const deadline = performance.now() + BACK_WITHIN_MS;
  while (performance.now() < deadline) {
    if (await attempt().catch(() => null)) return;
    await delay(50);
  }
  throw new Error(`${what} is not back`);
}

describe("when connections go silent", () => {
  it.concurrent.each(["all", "replies"] as const)(
    "(losing %s) commands, transactions, a subscriber and a read that waits for a job are back on new ones",
    async (what) => {
      const { proxy, connect, duplicate, close } = await connectThroughProxy();
      const command = connect("command");
      const subscriber = connect("patient");
      const patient = connect("patient");
      const blocking = duplicate(patient);
      const heard: string[] = [];
      subscriber.on("message", (_channel, text) => heard.push(text));
      await subscriber.subscribe(`channel-${what}`);
      await Promise.all([command.ping(), patient.ping(), blocking.ping()]);
      const jobs = `jobs-${what}`;
      const takeJob = async (): Promise<unknown> => (await blocking.bzpopmin(jobs, 10)) ?? takeJob();
      const taken = takeJob();

      proxy.silence(what);
      const inFlight = command
        .multi()
        .set(`key-${what}`, "1")
        .exec()
        .then(() => "done", String);
      await Promise.all([
        until("a command", () => command.get("key").then(() => true)),
        until("a transaction", () => command.multi().set(`key-${what}`, "2").exec()),
        until("a patient command", () => patient.get("key").then(() => true)),
        until("the subscriber", async () => (await direct.publish(`channel-${what}`, "word")) > 0 && heard.length > 0),
        until("the read", async () => {
          await direct.zadd(jobs, "1", "job");
          return Promise.race([taken, delay(500, null)]);
        }),
      ]);
      expect(await inFlight).toMatch(/done|Command timed out|Socket timeout|Command aborted/);
      expect(await direct.get(`key-${what}`)).toBe("2");
      close();
    },
    30_000,
  );
});
