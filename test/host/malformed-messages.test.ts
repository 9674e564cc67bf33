// Whoever can publish on Redis's channels can say anything there; it ends no process.

import type { Redis } from "ioredis";
import { describe, expect, it } from "vitest";
import { type FleetMessage, parseFleetMessage } from "../../orchestrator/contract/fleet-message.js";
import { CHANNELS } from "../../orchestrator/contract/jobs.js";
import { openFollower } from "../../orchestrator/reloads/follow-reload.js";
import { usePrivateRedis } from "../private-redis.js";

let redis: Redis;
usePrivateRedis("messages", (opened) => {
  redis = opened;
});

const MESSAGE: FleetMessage = { fleet: "f", version: 3, waits: true, active: "r", swapTo: null };
const HELD = { reload: "r", content: "r", weightVersion: "1", epoch: 1, layoutDigest: "l" };
const MALFORMED = [
  ...["}{", "", "null", "[]", "7", '"f"', '{"fleet":"default"}', "\u0000"],
  ...[
    { fleet: 1 },
    { version: "3" },
    { waits: null },
    { active: 7 },
    { swapTo: {} },
    { swapTo: { ...HELD, epoch: "1" } },
  ].map((wrong) => JSON.stringify({ ...MESSAGE, ...wrong })),
];

describe("a message", () => {
  it.each(MALFORMED)("that is none is taken for none: %s", (text) => {
    expect(parseFleetMessage(text)).toBeNull();
  });

  it.each([MESSAGE, { ...MESSAGE, active: null, swapTo: HELD }, { ...MESSAGE, more: "of a later version" }])(
    "that is one is read as it was sent",
    (message) => {
      expect(parseFleetMessage(JSON.stringify(message))).toEqual(message);
    },
  );

  it("that is none, on any channel, is passed over, and the next one is heard", async () => {
    const subscriber = redis.duplicate();
    const follower = openFollower(subscriber);
    await follower.listen();
    const heard = new Promise<FleetMessage>((resolve) => follower.onFleetChanged(resolve));
    for (const channel of Object.values(CHANNELS)) for (const text of MALFORMED) await redis.publish(channel, text);
    await redis.publish(CHANNELS.fleet, JSON.stringify(MESSAGE));
    expect(await heard).toEqual(MESSAGE);
    subscriber.disconnect();
  });
});
