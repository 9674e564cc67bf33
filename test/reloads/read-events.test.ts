// Streams of events over a real Redis: nothing is missed, the beginning stays, and many readers cost what one does.

import type { Redis } from "ioredis";
import { afterEach, describe, expect, it } from "vitest";
import { CHANNELS, KEYS, TICKS_KEPT } from "../../orchestrator/contract/jobs.js";
import { openEventStore } from "../../orchestrator/fleet/event-store.js";
import { openFollower } from "../../orchestrator/reloads/follow-reload.js";
import { openEventReader } from "../../orchestrator/reloads/read-events.js";
import type { ReloadEvent } from "../../orchestrator/reloads/reloads.js";
import { usePrivateRedis } from "../private-redis.js";

let redis: Redis;
usePrivateRedis("events", (opened) => {
  redis = opened;
});

const subscribers: Redis[] = [];
afterEach(() => {
  for (const subscriber of subscribers.splice(0)) subscriber.disconnect();
});

async function openReader() {
  const subscriber = redis.duplicate();
  subscribers.push(subscriber);
  const follower = openFollower(subscriber);
  await follower.listen();
  return openEventReader(redis, follower);
}

const state = (name: string, reload = "r") =>
  redis.xadd(KEYS.events(reload), "*", "name", "state", "payload", JSON.stringify({ state: name }));
const tick = (number: number) =>
  openEventStore(redis).tell({ reload: "r", field: "rank:0/0", value: {}, name: "progress", payload: { number } });
const end = async () => {
  await state("committed");
  await redis.publish(CHANNELS.reload, "r");
};

async function all(events: AsyncIterable<ReloadEvent>): Promise<ReloadEvent[]> {
  const read: ReloadEvent[] = [];
  for await (const event of events) read.push(event);
  return read;
}

describe("a reload's events", () => {
  it("keep its beginning, its states and the newest progress, however long it lasts", async () => {
    const store = openEventStore(redis);
    await state("queued");
    await state("loading");
    for (let number = 0; number < TICKS_KEPT + 300; number++) {
      await store.tell({ reload: "r", field: "rank:0/0", value: {}, name: "progress", payload: { number } });
    }
    await state("committed");
    const reader = await openReader();
    const events = await all(reader.follow("r", null, AbortSignal.timeout(10_000)));
    expect(events.slice(0, 2).map(({ payload }) => payload)).toEqual([{ state: "queued" }, { state: "loading" }]);
    expect(events[2]?.payload).toEqual({ number: 300 });
    expect(events).toHaveLength(TICKS_KEPT + 3);
    expect(events.at(-1)?.payload).toEqual({ state: "committed" });
  });

  it("are read once for all who have read equally far, and reach each of them", async () => {
    const reader = await openReader();
    await state("queued");
    const streams = Array.from({ length: 300 }, () => all(reader.follow("r", null, AbortSignal.timeout(10_000))));
    const reads = async () => Number(/cmdstat_xrange:calls=(\d+)/.exec(await redis.info("commandstats"))?.[1] ?? 0);
    const before = await reads();
    for (let number = 0; number < 5; number++) await tick(number);
    await end();
    for (const events of await Promise.all(streams)) expect(events).toHaveLength(7);
    expect((await reads()) - before).toBeLessThan(60);
  });

  it("that came while a read was under way are not slept through", async () => {
    const reader = await openReader();
    await state("queued");
    const streams = Array.from({ length: 20 }, () => all(reader.follow("r", null, AbortSignal.timeout(10_000))));
    for (let number = 0; number < 50; number++) void tick(number);
    await end();
    for (const events of await Promise.all(streams)) expect(events).toHaveLength(52);
  });
});
