import { expect, it } from "vitest";
import { openHeaderRoom } from "../../../orchestrator/reloads/push/header-room.js";

it("headers have so many bytes together; what is given back, once, may be taken again", () => {
  const room = openHeaderRoom({ one: 60, together: 100 });
  const giveBack = room.take(60, "bucket 0");
  room.take(40, "bucket 1");
  expect(() => room.take(1, "bucket 2")).toThrow(expect.objectContaining({ code: "backpressure" }));
  giveBack();
  giveBack();
  room.take(60, "bucket 2");
  expect(() => room.take(1, "bucket 3")).toThrow(expect.objectContaining({ code: "backpressure" }));
});

it("a header that is longer than a bucket's may be is refused for good", () => {
  const room = openHeaderRoom({ one: 60, together: 100 });
  expect(() => room.take(61, "bucket 7")).toThrow(
    expect.objectContaining({ code: "checkpoint_invalid", message: expect.stringContaining("bucket 7") }),
  );
});
